"""The tables, in Markdown."""

from collections.abc import Callable, Sequence

from speed.generation import EVOLORA
from speed.scaling import growth
from speed.store import Row, Store


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [list(header), ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def generation(rows: Sequence[Row]) -> str:
    """A line for each side of each shape."""
    lines: list[list[object]] = []
    for row in rows:
        ours = row["sides"][EVOLORA]["median"]
        for name, side in row["sides"].items():
            times = side["seconds"]
            lines.append(
                [
                    row["model"],
                    f"{row['individuals']} x {row['prompts']} x {row['new_tokens']}",
                    side.get("threads", row["machine"]["threads"]),  # rows of earlier days have one for all
                    name,
                    f"{side['median']:.3f}",
                    f"{min(times):.3f} to {max(times):.3f}",
                    f"{side['median'] / ours:.2f}",
                    f"{side['equal_tokens']:.4f}",
                ]
            )
    header = ["model", "shape", "threads", "side", "seconds", "range", "over evolora", "equal tokens"]
    return table(header, lines)


def gemm(rows: Sequence[Row]) -> str:
    """evolora's share of the rate of matrix products."""
    lines = [
        [
            row["model"],
            f"{row['individuals']} x {row['prompts']} x {row['new_tokens']}",
            f"{row['gflop']:.1f}",
            f"{row['gflop_per_second']:.0f}",
            *(f"{100 * share:.0f}%" for share in (row["gemm_share"]["highest"], row["gemm_share"]["torch.mm"])),
            ", ".join(f"{name} {rate:.0f}" for name, rate in row["gemm_gflop_per_second"].items()),
        ]
        for row in rows
    ]
    header = ["model", "shape", "GFLOP", "GFLOP/s", "of the highest", "of torch.mm", "products, GFLOP/s"]
    return table(header, lines)


def lengths(rows: Sequence[Row]) -> str:
    header = ["model", "shape", "ends", "mean", "min", "p10", "p25", "p50", "p75", "p90", "max"]
    return table(
        header,
        [
            [
                row["model"],
                f"{row['individuals']} x {row['prompts']} x {row['new_tokens']}",
                row["ends"],
                *(f"{row['lengths'][name]:.1f}" for name in header[3:]),
            ]
            for row in rows
        ],
    )


def scaling(rows: Sequence[Row]) -> str:
    lines = [
        [
            row["model"],
            row["individuals"],
            f"{row['median']:.3f}",
            f"{1000 * row['median'] / row['individuals']:.1f}",
            f"{row['individuals'] * row['prompts'] * row['new_tokens'] / row['median']:,.0f}",
        ]
        for row in rows
    ]
    text = table(["model", "individuals", "seconds", "ms an individual", "tokens/s"], lines)
    for model in dict.fromkeys(row["model"] for row in rows):
        exponent = growth([row for row in rows if row["model"] == model])
        text += f"\n\n{model}: cost grows as individuals^{exponent:.2f} over the larger half"
    return text


def pairs(rows: Sequence[Row]) -> str:
    """Refinement: two sides a row."""
    lines = []
    for row in rows:
        for name, side in row["sides"].items():
            times = side["seconds"]
            lines.append(
                [
                    row["model"],
                    side.get("threads", row["machine"]["threads"]),  # rows of earlier days have one for all
                    name,
                    f"{side['median']:.3f}",
                    f"{min(times):.3f} to {max(times):.3f}",
                ]
            )
    return table(["model", "threads", "side", "seconds", "range"], lines)


def memory(rows: Sequence[Row]) -> str:
    def gigabytes(value: int | None) -> str:
        return "?" if value is None else f"{value / 1e9:.2f}"

    names = ["peak", "base_bytes", "genome_bytes", "before_loading", "base_loaded", "after_evaluation"]
    return table(
        ["model", "individuals", *(f"{name.replace('_', ' ')}, GB" for name in names), "bases"],
        [
            [
                row["model"],
                row["individuals"],
                *(gigabytes(row[name]) for name in names),
                "?" if row["bases"] is None else f"{row['bases']:.2f}",
            ]
            for row in rows
        ],
    )


def bars(judged: Sequence[Row]) -> str:
    def value(bar: Row) -> str:
        if bar["worst"] is not None:
            return f"{bar['worst']:.2f}"
        return "not measured" if len(bar["figures"]) < bar["shapes"] else "tokens differ"

    return table(
        ["bar", "limit", "measured (the worst shape)", "by shape", "holds"],
        [
            [
                bar["bar"],
                bar["limit"],
                value(bar),
                "; ".join(f"{shape}: {figure}" for shape, figure in bar["figures"].items()),
                "yes" if bar["holds"] else "NO",
            ]
            for bar in judged
        ],
    )


SHOWN: dict[str, tuple[tuple[str, Callable[[Sequence[Row]], str]], ...]] = {
    "generation": (
        ("Completions of full length (individuals x prompts x new tokens)", generation),
        ("Share of the rate of matrix products", gemm),
    ),
    "early": (
        ("Completions that end early, lengths spread over 1 .. 64", generation),
        ("The lengths", lengths),
    ),
    "scaling": (("Cost against individuals", scaling),),
    "refinement": (("A GRPO update", pairs),),
    "elites": (("PPO on 4 elites", pairs),),
    "memory": (("Peak memory", memory),),
}


def show(store: Store, part: str) -> None:
    rows = store.rows(part)
    if not rows:
        return
    for title, form in SHOWN[part]:
        print(f"\n## {title}\n\n{form(rows)}", flush=True)
