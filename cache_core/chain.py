"""The chain of forwards on one module, and the innermost place in it.

``module.forward`` is wrapped by many: diffusers' hooks (group offloading, context parallelism), accelerate's (CPU
offloading, device maps), ParaAttention, a user's patch. Most of them must run whether or not the cache computes a
block: they load the next block's weights, or split its input. So the cache's own hook goes inside all of them, in
whatever order they were installed, and is still there when they are removed and put back.

Writable places are those of diffusers' ``HookRegistry``, accelerate's ``_old_forward`` and ``module.forward`` itself.
Other wrappers hide what they wrap: they are searched, never changed.
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
_MOST = 200  # callables inspected: a wrapper may refer to anything


class CacheHook(ModelHook):
    """A hook of the cache."""

    fn_ref: Any  # it holds callables, but diffusers declares them as None

    def __init__(self) -> None:
        ModelHook.__init__(self)


class Link(NamedTuple):
    """One place that holds a forward.

    Attributes:
        forward: what it holds now.
        owner, name: the object and its attribute; owner None means inside a wrapper that cannot be changed.
        wrapper: the wrapper that holds it; None for the module itself.
    """

    forward: Any
    owner: Any = None
    name: str = ""
    wrapper: Any = None

    def put(self, forward: Any) -> None:
        setattr(self.owner, self.name, forward)


def chain(module: nn.Module) -> list[Link]:
    """The places between ``module.forward`` and the class's own forward, outermost first, as far as they are known."""
    top = Link(module.forward, module, "forward")
    return [top, *(_below(top.forward, module, []) or [])]


def holder(module: nn.Module, forward: Any) -> Link | None:
    """The place that holds ``forward``; None if calls of the module do not lead through it."""
    if module.__dict__.get("forward") is forward:  # the usual case: nothing was wrapped around it since
        return Link(forward, module, "forward")
    return next((link for link in chain(module) if link.forward is forward), None)


def is_innermost(module: nn.Module, hook: CacheHook, wrapper: Any) -> bool:
    """Whether calls go through a hook's wrapper, and nothing inside it could be moved around it."""
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
    """Whether the outermost wrapper is one of diffusers' that was copied together with its module: such a copy still
    runs the forward of the original module."""
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
    # diffusers assumes that its lists are in the order of the wrappers.
    registry._hook_order.insert(0, registry._hook_order.pop())
    registry._fn_refs.insert(0, registry._fn_refs.pop())
    registry.hooks = {key: registry.hooks[key] for key in registry._hook_order}
    return wrapper


def take_off(module: nn.Module, hook: CacheHook, name: str, wrapper: Any) -> None:
    """Unregister a hook and leave no trace; only the registry changes if calls do not go through it."""
    registry: HookRegistry = vars(module)["_diffusers_hook"]
    link, reference = holder(module, wrapper), hook.fn_ref
    if link is not None and link.owner is not None:
        link.put(reference.original_forward)
    # Other code may still hold the wrapper.
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
            del module.__dict__["forward"]  # the class's own is enough


def _below(forward: Any, module: nn.Module, seen: list[Any]) -> list[Link] | None:
    """The places inside ``forward``; None if it does not reach the module's own forward."""
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
    """The reference through which diffusers' wrapper calls; it can be changed."""
    cells = getattr(function, "__closure__", None) or ()
    return next((value for value in map(_content, cells) if isinstance(value, HookFunctionReference)), None)


def _referred(forward: Any) -> Iterator[Any]:
    """The callables that an unknown kind of wrapper may call."""
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
