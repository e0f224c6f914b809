"""Errors in a line each, with what is allowed and what to do, in place of tracebacks and of Hydra's own words."""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from traceback import walk_tb

from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, ConfigTypeError, OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from udpbench.commands.disk import disk_error
from udpbench.commands.machine import memory_error
from udpbench.commands.quoting import advice, quoted
from udpbench.commands.searchpath import option_files
from udpbench.core.errors import first_line

# What is raised for wrong input.
WRONG_WORDS = (HydraException, OmegaConfBaseException, YAMLError, ValueError, UserWarning)
KINDS = {"NoneType": "null", "int": "a number", "float": "a number"}  # of values, in a person's words
FEW = 12  # options of a group that an error lists; of groups with more, udpbench list does
RESUME = "interrupted; the same command goes on where this one stopped"


@contextmanager
def one_line_errors(interrupted: str = "interrupted") -> Iterator[None]:
    """Ends the process with status 2 and a line for each error in the command line or its input, with status 1 and a
    line if memory is short, with status 130 and the line ``interrupted`` for Ctrl-C, with status 141 and no word when
    nobody reads its output any more.

    With HYDRA_FULL_ERROR=1 in the environment the traceback of an error comes through.
    """
    replace_unencodable()
    before = os.environ.get("HYDRA_FULL_ERROR", "0")
    wants_traceback = before == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come out of Hydra as they are, not printed and turned into status 1
    try:
        with warnings.catch_warnings():
            # A folder of one's own methods that is not there is an error, not a remark on the way to another one.
            warnings.filterwarnings("error", message="provider=hydra.searchpath", category=UserWarning)
            yield
        if sys.stdout is not None:  # a descriptor that was closed
            sys.stdout.flush()
    except BrokenPipeError:  # who reads the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # where the rest of it goes
        sys.exit(141)
    except (*WRONG_WORDS, OSError) as error:
        if wants_traceback:
            raise
        for line in lines_of(error):
            say(f"error: {line}")
        sys.exit(2)
    except KeyboardInterrupt:
        say(interrupted)
        sys.exit(130)
    except Exception as error:
        short = memory_error(error)
        if wants_traceback or not short:
            raise
        say(f"error: {short}")
        sys.exit(1)
    finally:
        os.environ["HYDRA_FULL_ERROR"] = before


def lines_of(error: Exception) -> list[str]:
    """What a person is told of an error: a line for each thing that is wrong, of Hydra's own errors one; the name of
    its class if it has no message."""
    message = str(error).partition("Config search path:")[0]
    if line := _of_a_file(error) or _of_a_word(error, message):
        return [line]
    lines = [_of_hydra(error, message)] if isinstance(error, HydraException) else message.splitlines()
    return lines if any(lines) else [type(error).__name__]


def _of_a_file(error: Exception) -> str | None:
    """What is wrong with a file that was to be read or written."""
    if isinstance(error, MarkedYAMLError) and (mark := error.problem_mark or error.context_mark):
        return f"{mark.name} line {mark.line + 1}: is no YAML: {error.problem or error.context}"
    if isinstance(error, UnicodeDecodeError):
        # Hydra's words do not name the YAML that it was reading; its frame does.
        frames = (frame for frame, _ in walk_tb(error.__traceback__))
        file = next((found for frame in frames if (found := frame.f_locals.get("full_path"))), "a file of the input")
        return f"{file}: is not UTF-8; save it as UTF-8"
    if line := disk_error(error):
        return line
    return first_line(error) if isinstance(error, OSError) and error.strerror else None


def _of_a_word(error: Exception, message: str) -> str | None:
    """What is wrong with a word of the command line that means nothing by itself; ``message``: by Hydra."""
    if isinstance(error, OverrideParseException):
        return advice(error.override)
    if several := re.match(r"Ambiguous value for argument '(.*)'\n1\. ", message, re.DOTALL):
        key, _, value = several[1].partition("=")
        as_list, as_text = shlex.quote(f"{key}=[{value}]"), quoted(key, value)
        return f"{key}: {value!r} is several values; say {as_list} for a list, {as_text} for one text, -m for a grid"
    if message.startswith(said := "Config group override must be a string or a list. Got "):  # which, it does not say
        given = message.removeprefix(said)
        kind = KINDS.get(given, given)
        of = "; a number is a setting of an option, such as budget.eps=4" if kind == "a number" else ""
        return f"a group must be set to one of its options, not to {kind}; python -m udpbench --help lists them{of}"
    if missing := re.match(r"provider=hydra.searchpath in .*, path=(.*) is not available", message):
        return f"hydra.searchpath: there is no folder {missing[1]}"
    return None


def _of_hydra(error: HydraException, message: str) -> str:
    """What is wrong with what the words ask for together."""
    if isinstance(error.__cause__, ConfigKeyError | ConfigAttributeError):
        return no_setting(error.__cause__)
    line = " ".join(message.split()).partition(" To append to your default list use ")[0]
    if option := re.search(r"Could not find '(\S+)/(\S*)' Available options in '\1': (.*)", line):
        return no_option(option[1], option[2], option[3].split())
    if option := re.fullmatch(r"In 'config': Could not load '(\S+)/(\S*)'\.", line):  # of a list of several
        return no_option(option[1], option[2], [file.stem for file in option_files(option[1])])
    if several := re.match(r"Multiple values for (\S+)\. To override a value use 'override \S+: (\S+)'", line):
        in_yaml = f"in the defaults list of a YAML: - override /{several[1]}: {several[2]}"
        return f"{several[1]}: has one option; write {several[1]}={several[2]}, without the + ({in_yaml})"
    if line.startswith("Could not override 'metric'."):
        return "metric: a cell has several; +metric@metrics.extra.NAME=NAME adds one, as +metric@metrics.extra.fid=fid"
    if group := re.match(r"Error resolving interpolation '\S+\$\{([\w@]+)\}', possible interpolation keys", line):
        return f"{group[1]}: must have one option, no list of them and not none at all; -m {group[1]}=A,B is a grid"
    if isinstance(error.__cause__, ConfigTypeError):  # a list in place of settings by name, or the reverse
        return f"{line}: {first_line(error.__cause__)}"
    return line


def no_setting(error: ConfigKeyError | ConfigAttributeError) -> str:
    """The line for an unknown setting: the nearest ones, and all that are allowed there."""
    from udpbench.benchmark.signatures import parameters_of
    from udpbench.core.errors import instead

    path, node = str(error.full_key), error.parent_node
    where, _, name = path.rpartition(".")
    named = [str(key) for key in node if not str(key).startswith("_")] if isinstance(node, DictConfig) else []
    if not where and isinstance(node, DictConfig):
        parts = {str(key): node._get_node(key) for key in node if key != "hydra"}  # no reference is followed
        inside = [group for group, part in parts.items() if isinstance(part, DictConfig) and name in part]
        if inside:
            return f"no setting or group {path!r}; did you mean {' or '.join(f'{group}.{name}' for group in inside)}?"
        return f"no setting or group {path!r}{instead(name, named, 'python -m udpbench --help shows all')}"
    with suppress(ValueError):  # no part, or of a class that is not there
        if isinstance(node, DictConfig) and name in parameters_of(node.get("_target_")):  # which has a default
            return f"{path}: its YAML does not name it; +{path}=VALUE does"
    return f"no setting {path!r}{_of_another(where, name)}{instead(name, named)}"


def _of_another(group: str, name: str) -> str:
    """Which options of a group have a setting that the chosen one lacks, if these are few."""
    files = option_files(group) if re.fullmatch(r"\w+", group) else []
    having = [file for file in files if re.search(rf"^{re.escape(name)}:", file.read_text(encoding="utf-8"), re.M)]
    return f"; {' and '.join(f'{group}={file.stem}' for file in having)} has it" if 0 < len(having) < 3 else ""


def no_option(group: str, given: str, allowed: Sequence[str]) -> str:
    """What is wrong with an option that a group does not have: the nearest first, of many options only these."""
    from udpbench.core.errors import instead

    rest = f"python -m udpbench list {group} shows all {len(allowed)}" if len(allowed) > FEW else ""
    return f"no {group} {given!r}{instead(given, allowed, rest)}"


def replace_unencodable() -> None:
    """What the terminal's encoding lacks is shown as a question mark from now on, and is no error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def say(text: str) -> None:
    """One line to standard error, without importing anything that draws."""
    sys.stderr.write(f"{text}\n")
