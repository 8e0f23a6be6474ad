"""Settings that know who set them: frozen dataclasses whose numbers the command line can change, and nothing else.

`--set optimizer.lr=0.1` walks the dotted name and rebuilds the dataclasses on the way, so a value passes the same
checks as one written in a config file. Names that do not exist are errors that show the nearest that do.
"""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, replace
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    Self,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

SettingsT = TypeVar("SettingsT", bound="Settings")

Value: TypeAlias = int | float | bool | str | tuple[float, ...] | None
"""What a setting can be. Text is set from the command line where its type names the choices (a
Literal, or `Choices`); tuples are not."""

DEFAULT, FILE, SAMPLE, COMMAND_LINE, CHECKPOINT = "default", "file", "--sample", "command line", "checkpoint"
QAT_OPTION, TEACHER_OPTION, DATA = "--qat", "--teacher", "the data"


@dataclass(frozen=True)
class Choices:
    """Named choices that are found when the program runs: `backbone: Annotated[str, Choices(names)]`."""

    names: tuple[str, ...]


Kind: TypeAlias = type | str
"""A type that the command line may give a setting, or one of its named choices."""


class Entry(NamedTuple):
    """One resolved setting: its value, who set it, and what the command line may give it (nothing: it is fixed)."""

    value: Value
    origin: str
    kinds: frozenset[Kind]


@dataclass(frozen=True)
class Settings:
    """Base of every group of settings; it notes which arguments its constructor was given.

    A misspelt argument stays the TypeError of the dataclass.
    """

    def __new__(cls, *args: object, **kwargs: object) -> Self:  # noqa: D102
        self = super().__new__(cls)
        positional = [field.name for field in fields(cls) if not field.kw_only]
        given = [*positional[: len(args)], *kwargs]
        if not args and kwargs.keys() == {field.name for field in fields(cls) if field.init}:
            # As `dataclasses.replace` calls it, with every field: what is the default counts as such.
            given = [field.name for field in fields(cls) if field.init and not _is_default(field, kwargs[field.name])]
        object.__setattr__(self, "_origins", dict.fromkeys(given, FILE))
        return self

    def origin(self, name: str) -> str:
        """Who set this field: 'default' where the constructor was not given it."""
        origins: dict[str, str] = self.__dict__["_origins"]
        return origins.get(name, DEFAULT)

    def changed(self, name: str, value: object, *, origin: str | None = None) -> Self:
        """A copy with another value of one field, checked like a new one. Without an origin, who set it stays."""
        copy = replace(self, **{name: value})
        object.__setattr__(copy, "_origins", self.__dict__["_origins"] | ({name: origin} if origin else {}))
        return copy


def flatten(settings: Settings, *, prefix: str = "", inherited: str = FILE) -> dict[str, Entry]:
    """Every setting by its dotted name. What stands inside a group counts as set by whoever set the group."""
    hints = get_type_hints(type(settings), include_extras=True)
    entries: dict[str, Entry] = {}
    for field in fields(settings):
        value, name = getattr(settings, field.name), prefix + field.name
        origin = settings.origin(field.name)
        if origin == FILE:
            origin = inherited
        if isinstance(value, Settings):
            entries |= flatten(value, prefix=f"{name}.", inherited=origin)
        else:
            entries[name] = Entry(_plain(value), origin, _kinds(hints[field.name]))
    return entries


def override(settings: SettingsT, name: str, value: Value, *, origin: str = COMMAND_LINE) -> SettingsT:
    """A copy in which the setting of this dotted name has this value, set by the command line or another `origin`."""
    head, _, rest = name.partition(".")
    if rest:
        return settings.changed(head, override(getattr(settings, head), rest, value, origin=origin))
    return settings.changed(head, value, origin=origin)


def switchable(settings: Settings) -> frozenset[str]:
    """The groups that may be left out: `--set ema=none`."""
    hints = get_type_hints(type(settings), include_extras=True)
    groups = [field.name for field in fields(settings) if isinstance(getattr(settings, field.name), Settings)]
    return frozenset(name for name in groups if type(None) in _members(hints[name]))


def parameters(function: Callable[..., object], *, keywords: Mapping[str, Value], origin: str) -> dict[str, Entry]:
    """The keyword parameters of a function as settings; `keywords` are their defaults."""
    hints = get_type_hints(function, include_extras=True)
    return {name: Entry(value, origin, _kinds(hints.get(name, type(value)))) for name, value in keywords.items()}


def as_text(value: Value) -> str:
    """As a person writes it."""
    if isinstance(value, tuple):
        return " ".join(f"{number:g}" for number in value)
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def parse_value(name: str, text: str, *, kinds: frozenset[Kind]) -> Value:
    """The value that a text on the command line means for a setting of these types."""
    word = text.strip().lower()
    if word == "none" and type(None) in kinds:
        return None
    if word in ("true", "false") and bool in kinds:
        return word == "true"
    if int in kinds:
        try:
            return int(word)
        except ValueError:
            pass
    if float in kinds:
        try:
            number = float(word)
        except ValueError:
            pass
        else:
            if math.isfinite(number):
                return number
    named = sorted(kind for kind in kinds if isinstance(kind, str))
    if text.strip() in named:
        return text.strip()
    asked = ([f"one of {', '.join(named)}"] if named else []) + [
        words for kind, words in _WORDS.items() if kind in kinds]
    near = difflib.get_close_matches(text.strip(), named, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"{name} takes {' or '.join(asked)}, got {text!r}{hint}")


def unknown_name(name: str, choices: Iterable[str]) -> ValueError:
    """The error for a name that does not exist: the nearest that do, and all of them."""
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return ValueError(f"there is no setting {name!r}{hint}\nthese can be set: {', '.join(known)}")


_WORDS: Mapping[type, str] = {int: "a whole number", float: "a number", bool: "true or false", type(None): "none"}


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _kinds(hint: Any) -> frozenset[Kind]:
    """What the command line may give; nothing for text without choices, functions and the like."""
    members = _members(hint)
    choices = [choice for member in members if get_origin(member) is Literal for choice in get_args(member)]
    choices += [name for member in members if get_origin(member) is Annotated
                for one in get_args(member)[1:] if isinstance(one, Choices) for name in one.names]
    found = [member for member in members if member in (int, float, bool)] + choices
    return frozenset([*found, type(None)] if found and type(None) in members else found)


def _is_default(field: Field[Any], value: object) -> bool:
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return default is not MISSING and bool(value == default)


def _plain(value: object) -> Value:
    """A value as --show prints it and a checkpoint keeps it: functions by their name, other things as they print."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
        return value.__name__
    return repr(value)
