"""Completion of verbs, flags and their words in bash, zsh and fish, made of the parser that will read them."""

import argparse
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ggufreap.cli.common import Result, Verbs
from ggufreap.cli.flags import argument, general

PROGRAM = "ggufreap"
_CHOICES = re.compile(r"\{(.*)\}")


@dataclass(frozen=True)
class Offered:
    """A flag in all its spellings; `words` are what can follow, `takes` is whether anything does."""

    names: tuple[str, ...]
    help: str
    takes: bool
    words: tuple[str, ...]


@dataclass(frozen=True)
class Verb:
    """A verb with its flags; `words` can stand in the place of its first argument, beside files."""

    help: str
    flags: tuple[Offered, ...]
    words: tuple[str, ...]


def offered(verbs: Verbs) -> dict[str, Verb]:
    """Verb -> what it takes."""
    return {name: Verb(summary, *_read(groups)) for name, (_, summary, groups) in verbs.items()}


def _read(groups: Sequence[Callable[[argparse.ArgumentParser], None]]) -> tuple[tuple[Offered, ...], tuple[str, ...]]:
    parser = argparse.ArgumentParser(prog=PROGRAM)
    for add in (*groups, general):
        add(parser)
    flags: list[Offered] = []
    first: tuple[str, ...] = ()
    for action in parser._actions:
        if action.option_strings:
            help = " ".join((action.help or "").replace("%%", "%").split())
            flags.append(Offered(tuple(action.option_strings), help, action.nargs != 0, _words(action)))
        elif not first:
            first = _words(action)
    return tuple(flags), first


def _words(action: argparse.Action) -> tuple[str, ...]:
    """What can be given, where that is a list."""
    if action.dest == "recipe":
        from ggufreap.recipe import recipe_names

        return recipe_names()
    if action.choices is not None:
        return tuple(map(str, action.choices))
    match = _CHOICES.fullmatch(action.metavar) if isinstance(action.metavar, str) else None
    return tuple(match[1].split(",")) if match else ()


def _bash(verbs: Mapping[str, Verb]) -> Iterator[str]:
    yield f"_{PROGRAM}() {{"
    yield '  local cur=${COMP_WORDS[COMP_CWORD]} words=""'
    yield '  if [ "$COMP_CWORD" -eq 1 ]; then'
    yield f'    words="{" ".join(verbs)}"'
    yield '  else case "${COMP_WORDS[1]} ${COMP_WORDS[COMP_CWORD-1]}" in'
    for name, verb in verbs.items():
        first = [Offered((name,), "", True, verb.words)] if verb.words else []
        for flag in (*first, *(flag for flag in verb.flags if flag.words)):
            patterns = "|".join(f'"{name} {spelling}"' for spelling in flag.names)
            yield f'    {patterns}) words="{" ".join(flag.words)}" ;;'
    yield '    *) case "${COMP_WORDS[1]} $cur" in'
    for name, verb in verbs.items():
        spelled = " ".join(spelling for flag in verb.flags for spelling in flag.names)
        yield f'      "{name} -"*) words="{spelled}" ;;'
    yield "    esac ;;"
    yield "  esac; fi"
    yield '  COMPREPLY=($(compgen -W "$words" -- "$cur"))'
    yield "}"
    yield f"complete -o default -o bashdefault -F _{PROGRAM} {PROGRAM}"


def _zsh(verbs: Mapping[str, Verb]) -> Iterator[str]:
    yield f"#compdef {PROGRAM}"
    yield f"_{PROGRAM}() {{"
    yield "  local -a verbs"
    described = (shlex.quote(f"{name}:{verb.help}") for name, verb in verbs.items())
    yield f"  verbs=({' '.join(described)})"
    yield "  if (( CURRENT == 2 )); then _describe verb verbs; _files; return; fi"
    yield "  shift words; (( CURRENT-- ))"
    yield "  case $words[1] in"
    for name, verb in verbs.items():
        specs = [spec for flag in verb.flags for spec in _zsh_specs(flag)]
        first = [shlex.quote(f"1:argument:({' '.join(verb.words)})")] if verb.words else []
        yield f"    {name}) _arguments {' '.join([*specs, *first, shlex.quote('*:file:_files')])} ;;"
    yield "  esac"
    yield "}"
    yield f"compdef _{PROGRAM} {PROGRAM}"


def _zsh_specs(flag: Offered) -> Iterator[str]:
    help = re.sub(r"([\[\]:\\])", r"\\\1", flag.help)
    after = f":value:({' '.join(flag.words)})" if flag.words else ":value:_files" if flag.takes else ""
    for spelling in flag.names:
        yield shlex.quote(f"*{spelling}[{help}]{after}")


def _fish(verbs: Mapping[str, Verb]) -> Iterator[str]:
    for name, verb in verbs.items():
        yield f"complete -c {PROGRAM} -n __fish_use_subcommand -a {name} -d {_fish_quoted(verb.help)}"
    for name, verb in verbs.items():
        seen = f"complete -c {PROGRAM} -n '__fish_seen_subcommand_from {name}'"
        if verb.words:
            yield f"{seen} -a {_fish_quoted(' '.join(verb.words))}"
        for flag in verb.flags:
            words = f" -x -a {_fish_quoted(' '.join(flag.words))}" if flag.words else " -r" if flag.takes else ""
            yield f"{seen} {' '.join(map(_fish_name, flag.names))}{words} -d {_fish_quoted(flag.help)}"


def _fish_name(spelling: str) -> str:
    """Fish tells long flags, letters, and words behind one dash apart."""
    bare = spelling.lstrip("-")
    return f"-l {bare}" if spelling.startswith("--") else f"-s {bare}" if len(bare) == 1 else f"-o {bare}"


def _fish_quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


SHELLS = {"bash": _bash, "zsh": _zsh, "fish": _fish}


def _run_completion(options: argparse.Namespace) -> Result:
    from ggufreap import console

    return console.Script("\n".join(SHELLS[options.shell](offered(options.verbs)))), 0


VERBS: Verbs = {
    "completion": (
        _run_completion,
        "print the completion of a shell; for bash: source <(ggufreap completion bash)",
        (argument("shell", choices=SHELLS, help="bash, zsh, or fish"),),
    ),
}
