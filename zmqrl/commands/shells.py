"""Completion scripts for bash, zsh and fish."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from zmqrl.commands.completion import Completed

# $cur is the word to complete, after $previous. bash splits `--mode=sync` into three words.
BASH: Final = """\
# Completes zmqrl in bash. Made by `zmqrl completion bash`.
_zmqrl() {{
  local cur=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} command=${{COMP_WORDS[1]}}
  local flags='' operands='' kind='' first=2 at
  [[ $cur == = ]] && cur=''
  [[ $previous == = ]] && previous=${{COMP_WORDS[COMP_CWORD-2]}}
  COMPREPLY=()
  if ((COMP_CWORD == 1)); then
    COMPREPLY=($(compgen -W '{commands} --help --version' -- "$cur"))
    return
  fi
  if [[ $command == bench ]] && ((COMP_CWORD > 2)); then
    command="bench ${{COMP_WORDS[2]}}" first=3
  fi
  case $command in
{cases}
  esac
  case "$command $previous" in
{values}
  esac
  if [[ $kind == text ]]; then
    return
  elif [[ $cur == -* && $kind != value ]]; then
    COMPREPLY=($(compgen -W "$flags" -- "$cur"))
  elif [[ $kind == files || $kind == runs ]]; then
    local IFS=$'\n'
    compopt -o filenames 2>/dev/null
    if [[ $kind == files ]]; then
      COMPREPLY=($(compgen -f -- "$cur"))
    else
      COMPREPLY=($(compgen -d -- "${{cur:-runs/}}" || compgen -d -- "$cur"))
    fi
  else
    for ((at = first; at < COMP_CWORD; at++)); do
      [[ $kind == words && " $operands " == *" ${{COMP_WORDS[at]}} "* ]] && return
    done
    COMPREPLY=($(compgen -W "$operands" -- "$cur"))
  fi
}}
"""
ZSH: Final = """\
(($+functions[compdef])) || {
  autoload -U +X compinit && compinit -u
}
autoload -U +X bashcompinit && bashcompinit
"""


def bash(found: Mapping[str, "Completed"]) -> str:
    return f"{_function(found)}complete -F _zmqrl zmqrl\n"


def zsh(found: Mapping[str, "Completed"]) -> str:
    """The script for zsh, with the function for bash."""
    function = _function(found).replace("in bash", "in zsh").replace("completion bash", "completion zsh")
    return f"{function}{ZSH}complete -F _zmqrl zmqrl\n"


def _function(found: Mapping[str, "Completed"]) -> str:
    cases, values = [], []
    for name, about in found.items():
        options = " ".join(spelling for option in about.options for spelling in option.names)
        words = " ".join(about.words)
        cases.append(f"    '{name}') kind='{about.kind or ''}' operands='{words}' flags='{options}' ;;")
        for option in about.options:
            pattern = "|".join(f"'{name} {spelling}'" for spelling in option.names)
            match option.takes:
                case "words":
                    values.append(f"    {pattern}) kind=value operands='{' '.join(option.values)}' ;;")
                case "path":
                    values.append(f"    {pattern}) kind=files ;;")
                case "text":
                    values.append(f"    {pattern}) kind=text ;;")
    commands = " ".join(name for name in found if " " not in name)
    return BASH.format(commands=commands, cases="\n".join(cases), values="\n".join(values))


def fish(found: Mapping[str, "Completed"]) -> str:
    lines = ["# Completes zmqrl in fish. Made by `zmqrl completion fish`.", "complete -c zmqrl -f"]
    for name, about in found.items():
        command, _, second = name.partition(" ")
        if not second:
            lines.append(f"complete -c zmqrl -n __fish_use_subcommand -a {command} -d {_quoted(about.purpose)}")
        seen = f"__fish_seen_subcommand_from {command}" + (
            f"; and __fish_seen_subcommand_from {second}" if second else ""
        )
        start = f"complete -c zmqrl -n '{seen}'"
        if about.words:
            words = " ".join(about.words)
            lines.append(f"complete -c zmqrl -n '{seen}; and not __fish_seen_subcommand_from {words}' -a '{words}'")
        if about.kind in ("runs", "files"):
            how = "__fish_complete_directories" if about.kind == "runs" else "__fish_complete_path"
            lines.append(f"{start} -a '({how} (commandline -ct))'")
        for option in about.options:
            values = {"words": f" -x -a '{' '.join(option.values)}'", "path": " -r -F", "text": " -x", "nothing": ""}
            for spelling in option.names:
                kind = "-l" if spelling.startswith("--") else "-s"
                lines.append(f"{start} {kind} {spelling.lstrip('-')}{values[option.takes]}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SCRIPTS: Final[Mapping[str, Callable[[Mapping[str, "Completed"]], str]]] = {"bash": bash, "zsh": zsh, "fish": fish}
