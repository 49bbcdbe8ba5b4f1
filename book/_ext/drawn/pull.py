"""The pull of one wrong label: contributions of four images to one gradient, in a plane.

Each image can change its contribution by a step of its own, at equal cost. The search makes the sum
fit, and no single contribution is told apart from the others, so all of them move.
"""

import numpy as np

from drawn.ink import arrow, batch, box, drawing, group, lines, panel, picture, tag, text

WRONG = 1  # the image with the wrong label
SHARE = 0.4  # how much of the pull at it reaches the others through shared layers
PARTS = np.array([[78.0, -34.0], [56.0, 38.0], [84.0, 20.0], [58.0, -40.0]])  # of the sum, truly
RESIDUAL = np.array([-34.0, 78.0])  # what the wrong label adds to the part of its image
STEPS = (
    (
        "Right labels",
        "With the right labels the client's own images give the gradient that was sent. "
        "Nothing pulls at them.",
    ),
    (
        "One wrong label",
        "One label is wrong. Now the client's own images give another gradient: the sum "
        "misses what was sent by r.",
    ),
    (
        "The search",
        "The search sees only the sum. It closes the gap by moving all images away from the"
        " truth, those with right labels too.",
    ),
)


def moves() -> np.ndarray:
    """How each image's part changes when the sum is made to fit, (4, 2)."""
    reach = np.full(len(PARTS), SHARE)
    reach[WRONG] = 1.0
    weight = reach**2 / (reach**2).sum()  # the smallest changes that close the gap
    return -weight[:, None] * RESIDUAL


def draw() -> str:
    """The sum of the parts, and the images that move."""
    return drawing("wrong-label", [chain(), images()], STEPS)


def chain() -> str:
    """Parts of the gradient, one after the other, beside the gradient that was sent."""
    origin = np.array([26.0, 92.0])
    sent = PARTS.sum(0)
    wrong = PARTS.copy()
    wrong[WRONG] += RESIDUAL
    target = origin + sent
    states = [PARTS, wrong, wrong + moves()]
    parts = []
    for step, contributions in enumerate(states, start=1):
        ends = origin + np.concatenate([[(0, 0)], contributions]).cumsum(0)
        drawn = []
        for k, (a, b) in enumerate(zip(ends, ends[1:], strict=False)):
            touched = k == WRONG and step > 1
            drawn.append(arrow(tuple(a), tuple(b), "red thick" if touched else "blue thick", 9))
            middle = (a + b) / 2
            drawn.append(picture(k, float(middle[0]) - 11, float(middle[1]) - 30, 20))
        if step == 2:
            drawn.append(arrow(tuple(target), tuple(ends[-1]), "red dashed", 8))
            spot = (target + ends[-1]) / 2
            drawn.append(text(float(spot[0]) + 10, float(spot[1]) + 4, "r", "math red"))
        parts.append(group(f"only-{step}", *drawn))
    end = tuple(float(v) for v in target)
    fixed = [
        arrow(tuple(origin), end, "quiet thick dashed", 11),
        text(float(origin[0]), float(origin[1]) + 34, "sent: g", "math"),
        tag("circle", cx=end[0], cy=end[1], r=5, kind="stroke quiet"),
        tag("circle", cx=float(origin[0]), cy=float(origin[1]), r=4, kind="fill ink"),
        group(
            "from-2",
            text(0, 268, "r = (1/K) J_{k}^{⊤} (e_{a} − e_{b})", "math red"),
            text(0, 288, "the label of image k is a; it was taken for b", "little quiet"),
        ),
    ]
    return panel(
        "pull-chain",
        300,
        "A gradient is a sum",
        "Four arrows, one for each image, laid one after the other. With right labels they end "
        "where the arrow of the gradient that was sent ends. With one wrong label the second arrow"
        " points another way and the chain misses that end by r. In the last step all four arrows "
        "have changed a little, and the chain ends there again.",
        text(0, 14, "The gradient is a sum over images", "big"),
        *fixed,
        *parts,
    )


def images() -> str:
    """The images, pulled from their place, and blurred by as much."""
    names = [batch().class_names[n] for n in batch().labels.tolist()]
    pulls = np.linalg.norm(moves(), axis=1)
    pulls = pulls / pulls.max()
    parts = []
    for k, name in enumerate(names):
        x, y = 20.0 + 88 * k, 70.0
        blur = tag("feGaussianBlur", stdDeviation=float(1 + 6 * pulls[k] ** 0.5))
        parts.append(
            tag(
                "filter", blur, id=f"pull-blur-{k}", x="-20%", y="-20%", width="140%", height="140%"
            )
        )
        sharp = picture(k, x, y, 64)
        lost = tag("g", picture(k, x, y, 64), filter=f"url(#pull-blur-{k})")
        clip = tag("clipPath", box(x, y, 64, 64, rx=2), id=f"pull-clip-{k}")
        lost = (
            clip + tag("g", lost, clip_path=f"url(#pull-clip-{k})") + box(x, y, 64, 64, "frame", 2)
        )
        parts += [group("until-2", sharp), group("only-3", lost)]
        label = text(x + 32, y + 82, name, "little", "middle")
        parts.append(label if k != WRONG else group("only-1", label))
        foot = (x + 32, y + 92)
        tip = (x + 32, y + 92 + 20 + 56 * float(pulls[k]))
        parts.append(group("from-2", arrow(foot, tip, "red thick" if k == WRONG else "red", 9)))
    x = 20.0 + 88 * WRONG
    mistaken = text(x + 32, 152, "“truck”", "little bold red", "middle")
    parts.append(group("from-2", mistaken, box(x - 4, 66, 72, 72, "stroke red dashed", 4)))
    parts += [
        text(0, 44, "as the search holds them", "little quiet"),
        group(
            "from-2",
            lines(
                0,
                268,
                ["the pull at each image:", "most at the touched one, much at all"],
                "little quiet",
            ),
        ),
        group("only-1", text(0, 176, "no pull: the distance is zero here", "little quiet")),
    ]
    return panel(
        "pull-images",
        300,
        "What happens to the images",
        "The four images: cat, ship, ship, airplane. One ship is taken for a truck. Below each "
        "image an arrow shows how strongly the search pulls at it: most at the ship with the wrong"
        " label, clearly at the three others. In the last step all four are blurred.",
        text(0, 14, "What it does to the images", "big"),
        *parts,
    )
