"""A picture of what int8 costs each layer of a network."""

from __future__ import annotations

from pathlib import Path

from detseg.atomic import atomic_write
from detseg.quantization.report import LayerReport

_NAMED = 5
_KINDS = {"convolution": "tab:gray", "depthwise": "tab:orange", "pointwise": "tab:blue", "linear": "tab:green"}


def write_layers(path: Path, report: LayerReport) -> None:
    """Bars of the noise that each layer brings into the raw outputs, in the network's order, the worst named; below
    them the noise as it accumulates, and the ranges. An OSError names `path`."""
    from matplotlib.figure import Figure  # takes a second to import

    layers = report.layers
    figure = Figure(figsize=(max(8.0, 0.11 * len(layers) + 3), 9.0), dpi=110, layout="constrained", facecolor="white")
    alone, accumulated, ranges = figure.subplots(3, 1, sharex=True)
    places = range(len(layers))
    for kind, colour in _KINDS.items():
        chosen = [k for k in places if layers[k].kind == kind]
        if chosen:
            alone.bar(chosen, [min(layers[k].alone, 80.0) for k in chosen], color=colour, label=kind)
    alone.set(title="each layer alone in int8: signal to noise of the raw outputs", ylabel="dB, less is worse")
    alone.legend(frameon=False, ncols=4, fontsize=8)
    numbers = {layer.name: k for k, layer in enumerate(layers)}
    for layer in report.worst[:_NAMED]:
        alone.annotate(layer.name, (numbers[layer.name], min(layer.alone, 80.0)), rotation=60, fontsize=7,
                       xytext=(0, 3), textcoords="offset points", ha="left", va="bottom")
    alone.margins(y=0.35)
    accumulated.plot(places, [layer.own for layer in layers], label="alone", linewidth=1.2)
    accumulated.plot(places, [layer.accumulated for layer in layers], label="all layers in int8", linewidth=1.2)
    accumulated.set(title="signal to noise of each layer's own output", ylabel="dB")
    accumulated.legend(frameon=False, ncols=2, fontsize=8)
    ranges.fill_between(places, [layer.low for layer in layers], [layer.high for layer in layers], alpha=0.5,
                        step="mid", label="what it gave")
    ranges.plot(places, [layer.int8_low for layer in layers], color="black", linewidth=0.8, drawstyle="steps-mid")
    ranges.plot(places, [layer.int8_high for layer in layers], color="black", linewidth=0.8, drawstyle="steps-mid",
                label="what int8 holds")
    ranges.set(title="ranges of the outputs", xlabel="layer, in the network's order")
    ranges.set_yscale("symlog", linthresh=1.0)
    ranges.legend(frameon=False, ncols=2, fontsize=8)
    for axes in (alone, accumulated, ranges):
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
    with atomic_write(path, failure="the picture was not written") as unfinished:
        figure.savefig(unfinished, format="png")
