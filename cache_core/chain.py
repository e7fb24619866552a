"""The chain of forwards on one module, and the innermost place in it.

``module.forward`` is wrapped by many: diffusers' hooks (group offloading, context parallelism), accelerate's (CPU
offloading, device maps), ParaAttention, a user's own patch. Most of them must run whether or not the cache computes a
block: they load the next block's weights, or split its input. So the cache's own hook goes inside all of them, whoever
came first, and is then still there when they are taken off and put back.

Places that can be written are those of diffusers' ``HookRegistry``, accelerate's ``_old_forward`` and
``module.forward`` itself. Other wrappers keep what they wrap to themselves: they are looked through, never changed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import FunctionType, MethodType
from typing import Any, NamedTuple

from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import HookFunctionReference
from torch import nn

__all__ = [
    "CacheHook",
    "Link",
    "chain",
    "holder",
    "insert",
    "is_innermost",
    "leads_to_another",
    "own_forward",
    "take_off",
]

_IDLE = ModelHook()
_MOST = 200  # callables looked at: a wrapper may refer to anything


class CacheHook(ModelHook):
    """A hook of the cache."""

    fn_ref: Any  # diffusers declares what is in it, callables, as None

    def __init__(self) -> None:
        ModelHook.__init__(self)


class Link(NamedTuple):
    """One place that holds a forward.

    Attributes:
        forward: what it holds now.
        owner, name: the object and its attribute; owner None = inside a wrapper that cannot be changed.
        wrapper: who holds it; None for the module itself.
    """

    forward: Any
    owner: Any = None
    name: str = ""
    wrapper: Any = None

    def put(self, forward: Any) -> None:
        setattr(self.owner, self.name, forward)


def chain(module: nn.Module) -> list[Link]:
    """The places on the way from ``module.forward`` to the module's own, outermost first; as far as can be seen."""
    top = Link(module.forward, module, "forward")
    return [top, *(_below(top.forward, module, []) or [])]


def holder(module: nn.Module, forward: Any) -> Link | None:
    """The place that holds ``forward``; None if calls of the module do not lead through it."""
    if module.__dict__.get("forward") is forward:  # the usual case: nobody came after
        return Link(forward, module, "forward")
    return next((link for link in chain(module) if link.forward is forward), None)


def is_innermost(module: nn.Module, hook: CacheHook, wrapper: Any) -> bool:
    """Whether calls lead through a hook's wrapper, and through nothing inside it that could be around it."""
    links = chain(module)
    at = next((i for i, link in enumerate(links) if link.forward is wrapper), None)
    return at is not None and all(link.owner is None or link.owner is hook.fn_ref for link in links[at + 1 :])


def own_forward(module: nn.Module, forward: Any) -> bool:
    """Whether ``forward`` is the method of the module's class."""
    function = getattr(forward, "__func__", None)
    return getattr(forward, "__self__", None) is module and any(
        cls.__dict__.get("forward") is function for cls in type(module).__mro__
    )


def leads_to_another(module: nn.Module) -> bool:
    """Whether the outermost wrapper is one of diffusers' that was copied together with its module: it runs the forward
    of the module it was made for."""
    reference = _reference(getattr(module.__dict__.get("forward"), "func", None))
    registry: HookRegistry = vars(module)["_diffusers_hook"]
    return reference is not None and all(reference is not own for own in registry._fn_refs)


def insert(module: nn.Module, hook: CacheHook, name: str) -> Any:
    """Register a hook in the innermost place, and return its wrapper."""
    registry = HookRegistry.check_if_exists_or_initialize(module)
    place = next(link for link in reversed(chain(module)) if link.owner is not None)
    outer = module.forward
    module.forward = place.forward
    registry.register_hook(hook, name)
    wrapper = module.forward
    if place.owner is not module or place.name != "forward":
        module.forward = outer
        place.put(wrapper)
    # diffusers takes the order of its lists for the order of the wrappers.
    registry._hook_order.insert(0, registry._hook_order.pop())
    registry._fn_refs.insert(0, registry._fn_refs.pop())
    registry.hooks = {key: registry.hooks[key] for key in registry._hook_order}
    return wrapper


def take_off(module: nn.Module, hook: CacheHook, name: str, wrapper: Any) -> None:
    """Unregister a hook and leave no trace; nothing but the registry changes if calls do not lead through it."""
    registry: HookRegistry = vars(module)["_diffusers_hook"]
    link, reference = holder(module, wrapper), hook.fn_ref
    if link is not None and link.owner is not None:
        link.put(reference.original_forward)
    # Somebody may still hold the wrapper.
    reference.forward = reference.original_forward
    reference.pre_forward, reference.post_forward = _IDLE.pre_forward, _IDLE.post_forward
    if registry.hooks.get(name) is hook:
        at = registry._hook_order.index(name)
        registry._hook_order.pop(at)
        registry._fn_refs.pop(at)
        del registry.hooks[name]
    if not registry.hooks:
        del module._diffusers_hook
        if own_forward(module, module.__dict__.get("forward")):
            del module.__dict__["forward"]  # the class has it


def _below(forward: Any, module: nn.Module, seen: list[Any]) -> list[Link] | None:
    """The places inside ``forward``; None if it does not lead to the module's own forward."""
    if len(seen) >= _MOST or any(forward is other for other in seen):
        return None
    seen.append(forward)
    if own_forward(module, forward):
        return []
    function = forward.func if isinstance(forward, functools.partial) else forward
    reference = _reference(function)
    if reference is not None:
        name = "forward" if reference.original_forward is None else "original_forward"
        inner = Link(getattr(reference, name), reference, name, forward)
    elif "_old_forward" in getattr(getattr(function, "__code__", None), "co_names", ()) and hasattr(
        module, "_old_forward"
    ):
        inner = Link(module._old_forward, module, "_old_forward", forward)
    else:
        for candidate in _referred(forward):
            below = _below(candidate, module, seen)
            if below is not None:
                return [Link(candidate, wrapper=forward), *below]
        return None
    return [inner, *(_below(inner.forward, module, seen) or [])]


def _reference(function: Any) -> HookFunctionReference | None:
    """What diffusers' wrapper calls; it can be changed."""
    cells = getattr(function, "__closure__", None) or ()
    return next((value for value in map(_content, cells) if isinstance(value, HookFunctionReference)), None)


def _referred(forward: Any) -> Iterator[Any]:
    """The callables that a wrapper of an unknown kind may call."""
    values: list[Any] = []
    if isinstance(forward, functools.partial):
        values += [forward.func, *forward.args, *forward.keywords.values()]
    elif isinstance(forward, MethodType):
        values += [forward.__func__, *_attributes(forward.__self__)]
    elif isinstance(forward, FunctionType):
        values += [*map(_content, forward.__closure__ or ()), *(forward.__defaults__ or ())]
        values += (forward.__kwdefaults__ or {}).values()
    else:
        values += _attributes(forward)
    values += [getattr(forward, "__wrapped__", None), getattr(forward, "_torchdynamo_orig_callable", None)]
    yield from (value for value in values if callable(value) and not isinstance(value, type | nn.Module))


def _attributes(owner: Any) -> list[Any]:
    return [] if isinstance(owner, nn.Module | type) else list(getattr(owner, "__dict__", {}).values())


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
