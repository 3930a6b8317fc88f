"""What a user's MODEL or CLIP carries beside weights, for a copy that learns.

A copy over weights loaded a second time takes the user's patches along.  Patches of weights, attention and conditioning
fit any copy.  Two kinds point into the very modules they were made for: injections (a LoRA in bypass mode) and object
patches (compiled or replaced parts, exchanged methods).  Here they are made again for the copy, or refused before any
work, in one sentence.
"""
import copy
import inspect
import types
from collections.abc import Iterator

import comfy.utils
import torch
from comfy.patcher_extension import CallbacksMP, PatcherInjection
from torch import nn

try:
    from comfy.weight_adapter.bypass import BypassInjectionManager
except ImportError:  # older hosts have no bypass mode
    BypassInjectionManager = None

SOURCES = {"model": "Load Checkpoint or Load Diffusion Model", "clip": "Load Checkpoint or Load CLIP"}


def check_copyable(patcher, socket: str) -> None:
    """Raises ValueError, in one sentence, unless a copy that learns would see all that the patcher carries.

    Args:
        patcher: of a MODEL, or of a CLIP.
        socket: "model" or "clip".
    """
    if patcher.cached_patcher_init is None:
        raise ValueError(f"{socket} comes from a loader that cannot make it a second time, so a style cannot be "
                         f"learned on it. Load it with {SOURCES[socket]}.")
    for key, injections in patcher.injections.items():
        if any(_bypass_of(injection) is None for injection in injections):
            raise ValueError(f"{socket} carries '{key}', which exchanges layers while they run and cannot be repeated "
                             f"on the copy that learns. Connect {socket} from before the node that added it.")
    for name, patch in patcher.object_patches.items():
        if _repeated(patcher, patcher, name, patch) is IMPOSSIBLE:
            raise ValueError(f"{socket} carries a replaced part ('{name}', {type(patch).__name__}) that holds the "
                             f"original's own layers, so the copy that learns cannot have it. Connect {socket} from "
                             "before the node that replaced it.")


def carry_over(patcher, learner) -> None:
    """Makes the patcher's injections and object patches again for ``learner``, a clone over other weights.

    To be called outside inference mode, after ``check_copyable``.
    """
    learner.is_injected = False
    learner.add_callback(CallbacksMP.ON_CLONE, _without_injections)
    for key, injections in patcher.injections.items():
        learner.set_injections(key, [new for injection in injections
                                     for new in _repeated_bypass(_bypass_of(injection), learner.model)])
    learner.object_patches = {}
    for name, patch in patcher.object_patches.items():
        repeated = _repeated(patcher, learner, name, patch)
        if repeated is not DROPPED:
            learner.object_patches[name] = repeated


def _without_injections(patcher, clone) -> None:
    """A clone shares its origin's injections, and would take them out of the running model when it is thrown away."""
    clone.injections, clone.is_injected = {}, False


# ---- LoRA in bypass mode ----

def _bypass_of(injection: PatcherInjection) -> "BypassInjectionManager | None":
    """The LoRA behind an injection, if it is one in bypass mode."""
    if BypassInjectionManager is None or not inspect.isfunction(injection.inject):
        return None
    owner = inspect.getclosurevars(injection.inject).nonlocals.get("self")
    return owner if isinstance(owner, BypassInjectionManager) else None


def _repeated_bypass(manager: "BypassInjectionManager", model: nn.Module) -> list[PatcherInjection]:
    """The same LoRA for another copy of the model, with weights that backward can go through."""
    repeated = BypassInjectionManager()
    for key, (adapter, strength) in manager.adapters.items():
        own = copy.copy(adapter)
        if isinstance(own.weights, (list, tuple)):
            own.weights = type(own.weights)(w.clone() if torch.is_tensor(w) else w for w in own.weights)
        repeated.add_adapter(key, own, strength)
    return repeated.create_injections(model)


# ---- object patches ----

DROPPED, IMPOSSIBLE = object(), object()  # a patch that the copy does not need, and one that it cannot have


def _repeated(patcher, learner, name: str, patch):
    """What ``patch`` is on ``learner``: itself, DROPPED or IMPOSSIBLE.

    A compiled part computes the same as the part itself, so the copy keeps its own.  A method of one of the model's
    modules becomes the same method of the copy's.  Other modules are copied, for those made by a node cannot be
    differentiated through; what holds the model's own layers cannot be had.
    """
    own = _originals(patcher)
    if isinstance(compiled := getattr(patch, "_orig_mod", None), nn.Module):
        return DROPPED if own.get(id(compiled)) == name else IMPOSSIBLE
    if isinstance(patch, nn.Module):
        if any(id(module) in own for module in patch.modules()):
            return IMPOSSIBLE
        return copy.deepcopy(patch) if learner is not patcher else patch
    if isinstance(patch, types.MethodType) and id(patch.__self__) in own:
        counterpart = dict(learner.model.named_modules()).get(own[id(patch.__self__)])
        return IMPOSSIBLE if counterpart is None else types.MethodType(patch.__func__, counterpart)
    return IMPOSSIBLE if any(id(module) in own for module in _held(patch)) else patch


def _originals(patcher) -> dict[int, str]:
    """{id: name} of the model's own modules, whether or not patches have taken their places just now."""
    patched = {id(module) for patch in patcher.object_patches.values() if isinstance(patch, nn.Module)
               for module in patch.modules()}
    found = {id(module): name for name, module in patcher.model.named_modules() if id(module) not in patched}
    in_place = {name for name, patch in patcher.object_patches.items()
                if _part(patcher.model, name) is patch}
    for name in in_place:
        replaced = patcher.object_patches_backup.get(name)
        if isinstance(replaced, nn.Module):
            found |= {id(module): inner for inner, module in replaced.named_modules(prefix=name)}
    for name in patcher.object_patches.keys() - in_place:
        part = _part(patcher.model, name)
        if isinstance(part, nn.Module):
            found |= {id(module): inner for inner, module in part.named_modules(prefix=name)}
    return {number: name.replace("._orig_mod", "") for number, name in found.items()}


def _part(model: nn.Module, name: str):
    """What is called so in the model, or None: some patches add what was not there."""
    try:
        return comfy.utils.get_attr(model, name)
    except AttributeError:
        return None


def _held(part, depth: int = 4) -> Iterator[nn.Module]:
    """Modules that a function or an object holds on to, or what it holds does."""
    if isinstance(part, nn.Module):
        yield part
    elif depth and not isinstance(part, type | types.ModuleType):
        inner = [getattr(part, name, None) for name in ("__self__", "func")]
        inner += [*getattr(part, "args", ()), *getattr(part, "__dict__", {}).values()]
        if inspect.isfunction(part):
            inner += inspect.getclosurevars(part).nonlocals.values()
        for held in inner:
            yield from _held(held, depth - 1) if held is not None else ()
