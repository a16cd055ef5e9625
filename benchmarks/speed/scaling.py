"""The plot of cost against the number of individuals, and how straight the line is."""

import math
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def growth(rows: list[Row]) -> float:
    """The exponent b of cost ~ individuals^b by least squares over the larger half: 1 is linear growth."""
    rows = sorted(rows, key=lambda row: row["individuals"])[len(rows) // 2 :]
    x = [math.log(row["individuals"]) for row in rows]
    y = [math.log(row["median"]) for row in rows]
    if len(rows) < 2:
        return math.nan
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def plot(rows: list[Row], path: Path) -> None:
    """Seconds against individuals for each model, on logarithmic axes, with the line of linear growth through the last
    point."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.2))
    for model in dict.fromkeys(row["model"] for row in rows):
        of_model = sorted((row for row in rows if row["model"] == model), key=lambda row: row["individuals"])
        x, y = [row["individuals"] for row in of_model], [row["median"] for row in of_model]
        threads = of_model[0].get("threads", of_model[0]["machine"]["threads"])
        (line,) = axes.plot(x, y, marker="o", label=f"{model}, {threads} thread{'s' * (threads > 1)}")
        axes.plot(x, [y[-1] * n / x[-1] for n in x], linestyle=":", color=line.get_color())
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("individuals")
    axes.set_ylabel("seconds")
    axes.set_title(f"{rows[0]['prompts']} prompts, {rows[0]['new_tokens']} new tokens; dotted: linear growth")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
