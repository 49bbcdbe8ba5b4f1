"""The drawn explanations of the book: a name for each, and the function that makes its HTML."""

from collections.abc import Callable

from drawn import drift, label_equation, peeling, pull, who_sees_what

DRAWINGS: dict[str, Callable[[], str]] = {
    "who-sees-what": who_sees_what.draw,
    "label-equation": label_equation.draw,
    "peeling": peeling.draw,
    "drift": drift.draw,
    "wrong-label": pull.draw,
}
