// Python sends the whole picture; plotly, which stands above this as the page's own, redraws what changed in it.
export default {
  render({ model, el }) {
    const plot = el.appendChild(document.createElement("div"));
    plot.dataset.testid = "curves";
    const draw = () => {
      const { data, layout } = structuredClone(model.get("picture")); // plotly writes into what it is given
      globalThis.Plotly.react(plot, data, layout, { displaylogo: false });
    };
    model.on("change:picture", draw);
    draw();
    return () => {
      model.off("change:picture", draw);
      globalThis.Plotly.purge(plot);
    };
  },
};
