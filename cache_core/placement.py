"""One hook of the cache on one module: attached, kept whatever others do to the module's forward, removed."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

from torch import nn

from cache_core.chain import CacheHook, holder, insert, is_innermost, leads_to_another, own_forward, take_off

__all__ = ["Placement"]


class Placement:
    """A hook in the innermost place of a module's forwards.

    Raises:
        RuntimeError: the module was copied, or is shared, with a cache's hook and others on it.
    """

    def __init__(self, module: nn.Module, hook: CacheHook, name: str) -> None:
        self.module, self.hook, self._name = module, hook, name
        self._wrapper: Any = None
        self._outermost: Any = None
        self._class_forward: Callable[..., Any] | None = None
        _clean_copy(module, name)
        self._insert()

    def settle(self) -> bool:
        """Make calls of the module lead through the hook again, innermost. True if what it wraps is another forward.

        accelerate's offloading takes its hooks off and puts them on again after every image; people patch a forward
        and put back the one they remember.
        """
        if self.module.__dict__.get("forward") is not self._outermost:
            if not is_innermost(self.module, self.hook, self._wrapper):
                self.remove()
                self._insert()
                return True
            self._outermost = self.module.__dict__.get("forward")
        if self._class_forward is not None and type(self.module).forward is not self._class_forward:
            self._class_forward = type(self.module).forward  # patched, or another class
            self.hook.fn_ref.original_forward = MethodType(self._class_forward, self.module)
            return True
        return False

    def check_removable(self) -> None:
        """Raise RuntimeError if a wrapper that cannot be changed holds the hook's: without it, that wrapper would have
        to go, too."""
        link = holder(self.module, self._wrapper)
        if link is not None and link.owner is None:
            raise RuntimeError(
                f"cannot detach the cache from {type(self.module).__name__}: its forward was wrapped by "
                f"{_name(link.wrapper)!r} after the cache was attached (parallelize_transformer, a patch). Undo that "
                "first, or attach the cache last"
            )

    def remove(self) -> None:
        """Take the hook off; where a wrapper still holds it, it passes calls through."""
        take_off(self.module, self.hook, self._name, self._wrapper)

    def _insert(self) -> None:
        self._wrapper = insert(self.module, self.hook, self._name)
        self._outermost = self.module.__dict__["forward"]
        own = own_forward(self.module, self.hook.fn_ref.original_forward)
        self._class_forward = type(self.module).forward if own else None


def _name(forward: Any) -> str:
    function = getattr(forward, "func", forward)
    return str(getattr(function, "__qualname__", function))


def _clean_copy(module: nn.Module, name: str) -> None:
    """A copied block has copies of the hooks, and a forward that runs the original's."""
    registry = getattr(module, "_diffusers_hook", None)
    if registry is None or name not in registry.hooks:
        return
    if list(registry.hooks) != [name] or not leads_to_another(module):
        raise RuntimeError(
            f"this {type(module).__name__} has another transformer's cache on it (hooks {list(registry.hooks)}): it is "
            "shared with that one, or a copy of its block; call remove_cache() there before sharing or copying"
        )
    del module._diffusers_hook, module.__dict__["forward"]
