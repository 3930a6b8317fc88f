"""Sockets and widgets that several nodes share."""
import inspect
from collections.abc import Callable
from functools import wraps
from numbers import Integral, Real

from comfy_api.latest import io
from einops import rearrange
from torch import Tensor

from ..inst_core import preprocess
from ..inst_core.inversion import TIMINGS

CATEGORY = "InST"
COMPARE_CATEGORY = f"{CATEGORY}/compare"
MAX_SEED = 0xFFFFFFFFFFFFFFFF
ZERO_IS_AUTO = {"zero": "auto"}  # extra_dict of a number: web/inst.js writes "auto" for its 0

InstStyle = io.Custom("INST_STYLE")
LossMap = io.Custom("LOSS_MAP")


def problem_of(check: Callable, *arguments: object) -> bool | str:
    """An answer of validate_inputs: True, or why ``check(*arguments)`` refused with a ValueError.

    A widget that another node is connected to is None here, and known when the graph runs.
    """
    if any(argument is None for argument in arguments):
        return True
    try:
        check(*arguments)
    except ValueError as error:
        return str(error)
    return True


def held_to_widgets(execute: Callable) -> Callable:
    """An ``execute`` whose numbers and choices lie within their widgets before work begins.

    The host holds to them what is typed, not what another node hands over. As there, what ``validate_inputs`` names is
    left to the node: names of files, for instance.
    """
    signature = inspect.signature(execute)

    @wraps(execute)
    def checked(node: type[io.ComfyNode], *given, **named) -> io.NodeOutput:
        bound = signature.bind(node, *given, **named)
        left = inspect.signature(node.validate_inputs).parameters
        for widget in node.define_schema().inputs:
            if widget.id in bound.arguments and widget.id not in left:
                check_widget(widget, bound.arguments[widget.id])
        return execute(*bound.args, **bound.kwargs)

    return checked


def check_widget(widget: io.Input, value: object) -> None:
    """Raises ValueError for a value that a widget for numbers or choices would not take; NaN is none."""
    match widget:
        case io.Combo.Input():
            fits, wanted = value in widget.options, f"one of {', '.join(map(str, widget.options))}"
        case io.Int.Input() | io.Float.Input():
            kind, called = (Integral, "a whole number") if isinstance(widget, io.Int.Input) else (Real, "a number")
            fits = isinstance(value, kind) and widget.min <= value <= widget.max
            wanted = f"{called} from {widget.min:g} to {widget.max:g}"
        case _:
            return
    if not fits:
        raise ValueError(f"{widget.display_name or widget.id} is {value!r}; expected {wanted}. Correct the node that "
                         "is connected to it, or disconnect it and use the widget.")


def strength_input(default: float = 0.7) -> io.Float.Input:
    return io.Float.Input(
        "strength", display_name="repaint strength", default=default, min=0.0, max=1.0, step=0.01,
        tooltip="How much of the photograph is redone: 0.5 keeps the layout closely, 0.7 is the paper's example, 1 "
                "keeps almost nothing. It is a noise level, so it means the same for any number of steps.")


def seed_input(tooltip: str) -> io.Int.Input:
    return io.Int.Input("seed", default=0, min=0, max=MAX_SEED, control_after_generate=io.ControlAfterGenerate.fixed,
                        tooltip=tooltip)


def timing_input() -> io.Combo.Input:
    return io.Combo.Input(
        "timing", options=list(TIMINGS), default="matched", advanced=True,
        tooltip="matched: noise is added at the level where sampling starts. released: the two slightly different "
                "levels of the published code, with its DDIM levels, for comparison with the paper.")


def to_pictures(image: Tensor, name: str) -> Tensor:
    """IMAGE -> (B, 3, H, W)."""
    return rearrange(preprocess.as_rgb(image, name), "b h w c -> b c h w")


def to_image(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) -> IMAGE."""
    return rearrange(pictures, "b c h w -> b h w c").contiguous()
