"""The schema of a config group is the signature of its `_target_`: positional parameters come from the engine,
keyword-only ones are the configuration.

Signatures are read from the source with `ast`, so that a config is checked before torch is imported. Top-level settings
are checked the same way against a dataclass (config.Config).

A range stands beside the type: `Annotated[float, Gt(0)]`, or Ge, Lt, Le, Interval of annotated-types.

A run's own files may come from anyone, so they may name what conf/ names in the same group, and what the user names
openly: NORMLAB_PACKAGES=mylab,other. Words of a command line and files of conf/ are the user's own: any target goes.
"""

import ast
import dataclasses
import os
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache, cached_property, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Ge, Gt, Interval, Le, Lt

from normlab.errors import UserError, nearest
from normlab.values import MISMATCH, coerce, coercion, describe, shown

PACKAGES = "NORMLAB_PACKAGES"  # the environment variable
_REQUIRED = object()
_ANNOTATIONS: dict[str, Any] = {
    "__builtins__": {},
    **{t.__name__: t for t in (bool, int, float, str, list, dict, tuple)},
    **{"Any": Any, "Literal": Literal, "Mapping": Mapping, "Sequence": Sequence, "None": None},
    "Path": Path,
    **{"Annotated": Annotated, "Gt": Gt, "Ge": Ge, "Lt": Lt, "Le": Le, "Interval": Interval},
}


@dataclasses.dataclass(frozen=True)
class Parameter:
    hint: Any
    default: Any = _REQUIRED

    @property
    def is_place(self) -> bool:
        """Whether it says where something lies that is read; null: nowhere."""
        return self.hint is Path or Path in typing.get_args(self.hint)

    @property
    def is_required(self) -> bool:
        return self.default is _REQUIRED

    @cached_property
    def coercion(self) -> Callable[[Any], Any]:
        """Kept here, since a type takes longer to look up than most values to check."""
        return coercion(self.hint)

    def coerce(self, value: Any, path: str) -> Any:
        """Raises UserError."""
        try:
            return self.coercion(value)
        except MISMATCH:
            return coerce(value, self.hint, path)  # says what is wrong


@cache
def signature(target: str) -> dict[str, Parameter]:
    """Keyword-only parameters of a class or function named by its real path ("package.module.name").

    Raises UserError if there is no such module or name, or if a parameter is not plain enough to be read.
    """
    arguments = _arguments(target)
    parameters: dict[str, Parameter] = {}
    if arguments is None:
        return parameters
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        try:
            parameters[argument.arg] = Parameter(_hint(argument.annotation), _default(default))
        except (NameError, TypeError, ValueError):
            raise UserError(
                f"_target_={target}: '{argument.arg}' needs a plain type, as float or Literal, and a literal default"
            ) from None
    return parameters


@cache
def _arguments(target: str) -> ast.arguments | None:
    """Of a function, or of a class's __init__, its own or that of the first base that has one; None where none has.

    `self` is left out.
    """
    found = _definition(target)
    if isinstance(found.node, ast.FunctionDef):
        return found.node.args
    inits = [n.args for n in found.node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    if inits:
        del inits[0].args[0]
        return inits[0]
    return next((arguments for base in found.bases() if (arguments := _arguments(base)) is not None), None)


class _Definition(NamedTuple):
    """A function or a class, its module, and what names stand for there."""

    node: ast.FunctionDef | ast.ClassDef
    module: str
    names: Mapping[str, str]

    def bases(self) -> list[str]:
        """The targets of a class's bases, as far as their source can be found."""
        found = []
        for base in self.node.bases if isinstance(self.node, ast.ClassDef) else ():
            first, dot, rest = ast.unparse(base).partition(".")
            target = self.names.get(first, first) + dot + rest
            try:
                definition = _definition(target, follow=True)
            except (UserError, ValueError):
                continue  # as of a base of another library that is no plain class
            found.append(f"{definition.module}.{definition.node.name}")
        return found


def _definition(target: str, follow: bool = False) -> _Definition:
    """Where a target is defined: in its own module, or with `follow` in one that this imports it from.

    A target that a run's file names is never looked for elsewhere: modules import much that is no target. Raises
    UserError where it is not found.
    """
    module, _, name = target.rpartition(".")
    file = _file(module, target)
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise UserError(f"_target_={target}: {file}{line}: this is no Python: {error.args[0]}") from None
    names = _names(tree, module, is_package=file.name == "__init__.py")
    definitions = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    if name in definitions:
        return _Definition(definitions[name], module, names)
    imported = names.get(name) if follow else None
    if imported is None or imported == target:
        own = [known for known in definitions if not known.startswith("_")]
        hint = nearest(name, own) if own else "name the module that does"
        if name in names:
            hint = f"did you mean '{names[name]}'?"
        raise UserError(f"_target_={target}: {file} defines no {name or 'such name'}; {hint}")
    return _definition(imported, follow)


def _names(tree: ast.Module, module: str, is_package: bool) -> dict[str, str]:
    """What the names of a module's own and imported classes, functions and modules stand for."""
    known = {n.name: f"{module}.{n.name}" for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            above = node.level - is_package
            package = module.split(".")[: -above or None] if node.level else []
            source = ".".join([*package, *([node.module] if node.module else [])])
            known |= {alias.asname or alias.name: f"{source}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            known |= {alias.asname: alias.name for alias in node.names if alias.asname}
    return known


def check_call(target: str, positional: Sequence[str], path: str) -> None:
    """Raise UserError unless a target takes the positional arguments that the engine calls it with."""
    arguments = _arguments(target)
    if arguments is None or arguments.vararg is not None:
        return
    most = len(arguments.posonlyargs) + len(arguments.args)
    if not most - len(arguments.defaults) <= len(positional) <= most:
        raise UserError(f"{path}._target_={target}: expected something to call as f({', '.join(positional)}, *, ...)")


def parameters_of(settings: type) -> dict[str, Parameter]:
    """Fields of a dataclass of settings; those without a default are required."""
    hints = typing.get_type_hints(settings, include_extras=True)
    return {field.name: Parameter(hints[field.name], _field_default(field)) for field in dataclasses.fields(settings)}


def _field_default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return _REQUIRED if field.default is dataclasses.MISSING else field.default


def _file(module: str, target: str) -> Path:
    """Source file of a module; its packages are found without importing them (importing one may import torch)."""
    top, *rest = module.split(".")
    spec = find_spec(top) if top else None
    for root in (spec.submodule_search_locations or []) if spec else []:
        path = Path(root, *rest)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
    if spec and not rest and str(spec.origin).endswith(".py"):
        return Path(str(spec.origin))
    raise UserError(f"_target_={target}: there is no Python module '{module}'; expected package.module.name")


def _hint(annotation: ast.expr | None) -> Any:
    return Any if annotation is None else eval(ast.unparse(annotation), dict(_ANNOTATIONS))


def _default(node: ast.expr | None) -> Any:
    return _REQUIRED if node is None else ast.literal_eval(node)


def trust(targets: Iterable[str]) -> None:
    """This process, and those that it starts, may read these targets from a run's own files: the user named them."""
    os.environ[PACKAGES] = ",".join(sorted({*targets} | _trusted()))


def _trusted() -> set[str]:
    named = os.environ.get(PACKAGES, "").split(",")
    return {package.strip() for package in named if package.strip()}


def _check_trusted(target: str, path: str, known: Collection[str]) -> None:
    """Raise UserError on a target of a run's own file that neither conf/ nor the user names."""
    package, trusted = target.partition(".")[0], _trusted()
    if target not in known and target not in trusted and (package == "normlab" or package not in trusted):
        name = target if package == "normlab" else package or "PACKAGE"
        raise UserError(
            f"{path}._target_={target}: a run's own files may name what conf/ names there only; "
            f"if you trust this one, {PACKAGES}={name} allows it"
        )


def check_target(node: Any, path: str, known: Collection[str] | None = None) -> dict[str, Any] | None:
    """A group's node, checked against the signature of its `_target_` and with all defaults filled in.

    `_target_: null` means nothing (None). For a node from a run's own files, `known` are the targets that it may name:
    normlab has much else that a run is not to call. Nothing is imported.
    Raises UserError in one line naming the key, the value and what is allowed.
    """
    if not isinstance(node, Mapping):
        raise UserError(f"{path}={shown(node)}: expected settings with a _target_")
    if "_target_" not in node:
        raise UserError(f"{path}: no _target_ says what builds it")
    settings = {key: value for key, value in node.items() if key != "_target_"}
    target = node["_target_"]
    if target is None:
        if settings:
            raise UserError(f"{path}.{next(iter(settings))}: '{path}' is none here and has no settings")
        return None
    if not isinstance(target, str):
        raise UserError(f"{path}._target_={shown(target)}: expected package.module.name or null")
    if known is not None:
        _check_trusted(target, path, known)
    return {"_target_": target} | check(settings, signature(target), path)


def check(settings: Mapping[str, Any], parameters: Mapping[str, Parameter], path: str = "") -> dict[str, Any]:
    """The settings in the order of the parameters, types coerced, defaults filled in. Raises UserError."""
    prefix = f"{path}." if path else ""
    for key in settings:
        if key not in parameters:
            raise UserError(f"{prefix}{key}: there is no such setting; {nearest(key, parameters)}")
    checked = {}
    for key, parameter in parameters.items():
        value = settings.get(key, parameter.default)
        if value is _REQUIRED:
            raise UserError(f"{prefix}{key}: this setting has no default; expected {describe(parameter.hint)}")
        if isinstance(value, Mapping) and dataclasses.is_dataclass(parameter.hint):
            settings_class: Any = parameter.hint
            checked[key] = settings_class(**check(value, parameters_of(settings_class), prefix + key))
        else:
            checked[key] = parameter.coerce(value, prefix + key)
    return checked


def bind(node: Mapping[str, Any]) -> Any:
    """The target of a checked node, imported, with its settings bound: call it with the positional arguments."""
    known = signature(node["_target_"])
    settings = {
        key: Path(value) if key in known and known[key].is_place and value is not None else value
        for key, value in node.items()
        if key != "_target_"
    }
    return partial(named(node["_target_"]), **settings)


def named(target: str) -> Any:
    """What a target names, imported. Raises UserError where its module does not let itself be imported."""
    module, _, name = target.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        raise UserError(f"_target_={target}: importing {module} failed: {error}") from error


@cache
def class_attribute(target: str, name: str) -> Any:
    """The literal that a class assigns to a name in its body, or else the first of its bases that does.

    Nothing is imported. None where no class does. Raises UserError where it is no literal.
    """
    found = _definition(target)
    for statement in found.node.body if isinstance(found.node, ast.ClassDef) else ():
        value = _assigned(statement, name)
        if value is not None:
            try:
                return ast.literal_eval(value)
            except ValueError:
                raise UserError(f"_target_={target}: `{name}` is read from the source; expected a literal") from None
    return next((value for base in found.bases() if (value := class_attribute(base, name)) is not None), None)


def _assigned(statement: ast.stmt, name: str) -> ast.expr | None:
    """What a statement assigns to a name."""
    if isinstance(statement, ast.Assign):
        targets: list[ast.expr] = statement.targets
    elif isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    else:
        return None
    return statement.value if any(isinstance(t, ast.Name) and t.id == name for t in targets) else None
