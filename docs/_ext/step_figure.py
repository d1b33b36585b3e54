"""Draws docs/_static/step.svg: `python docs/_ext/step_figure.py`."""

from __future__ import annotations

from pathlib import Path

BOXES = [
    ("losses", "T scalars", "yours"),
    ("task gradients", "T x N, in place", "autograd/"),
    ("Gram matrix", "T x T, float64", "ops.gram"),
    ("weights", "T numbers", "methods/"),
    ("direction", "N numbers", "ops.combine"),
    (".grad", "views of it", "engine/"),
]
ARROWS = ["T backward passes", "one read", "T x T problem", "one read, one write", "no copy"]
WIDTH, HEIGHT, GAP, TOP = 132, 66, 40, 34


def svg() -> str:
    """The picture: a row of boxes, what each arrow costs, and the room that does it."""
    total = len(BOXES) * WIDTH + (len(BOXES) - 1) * GAP + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} 150" role="img" '
        'font-family="system-ui, sans-serif" text-anchor="middle">',
        "<title>losses, task gradients, Gram matrix, weights, direction, .grad</title>",
        f'<rect width="{total}" height="150" rx="8" fill="#fff"/>',
        '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0L8 4L0 8z" fill="#555"/></marker>',
    ]
    for i, (name, size, room) in enumerate(BOXES):
        x = 10 + i * (WIDTH + GAP)
        middle = x + WIDTH / 2
        parts += [
            f'<rect x="{x}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#e8f0fb" '
            'stroke="#4a76b8"/>',
            f'<text x="{middle}" y="{TOP + 28}" font-size="16" font-weight="600" fill="#17324d">'
            f"{name}</text>",
            f'<text x="{middle}" y="{TOP + 48}" font-size="14" fill="#33475b">{size}</text>',
            f'<text x="{middle}" y="{TOP + HEIGHT + 22}" font-size="14" fill="#4a76b8" '
            f'font-family="monospace">{room}</text>',
        ]
        if i < len(ARROWS):
            end, y = x + WIDTH + GAP, TOP + HEIGHT / 2
            parts += [
                f'<path d="M{x + WIDTH + 3} {y}H{end - 3}" stroke="#555" marker-end="url(#tip)"/>',
                f'<text x="{x + WIDTH + GAP / 2}" y="{TOP - 12}" font-size="13" fill="#555">'
                f"{ARROWS[i]}</text>",
            ]
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    (Path(__file__).parents[1] / "_static" / "step.svg").write_text(svg())
