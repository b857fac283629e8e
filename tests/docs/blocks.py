"""Fenced blocks of the documentation, and a shell in which they run as they stand.

A ``console`` block holds commands after ``$``, a ``python`` block a whole program; everything else (``text``,
``yaml``) is only read. A comment before a block says what it needs or is:

    <!-- emulation -->        needs a host that can emulate
    <!-- file: NAME -->       the block is the content of a file of this name in the working folder
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EMULATION_S = "4s"
"""Length of emulation runs here; the page runs them whole."""

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^>]*?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """One fenced block and the line where it begins."""

    line: int
    language: str
    text: str
    mark: str = ""

    @property
    def emulation(self) -> bool:
        """Whether it needs a host that can emulate."""
        return self.mark == "emulation"

    @property
    def file(self) -> str:
        """The file that the block is the content of, or an empty string."""
        return self.mark.removeprefix("file: ") if self.mark.startswith("file: ") else ""

    @property
    def runnable(self) -> bool:
        """Whether there is something to do."""
        return bool(self.file) or self.language in ("console", "python")

    @property
    def commands(self) -> str:
        """The commands of a console block as a script; a line that ends in a backslash goes on."""
        lines: list[str] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                lines.append(line[2:])
            elif lines and lines[-1].endswith("\\"):
                lines.append(line)
            else:
                raise ValueError(f"line {self.line}: no command: {line!r}; put output into a text block")
        return "\n".join(lines)


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(text.count("\n", 0, match.start("text")), match["language"], match["text"], match["mark"] or "")
        for match in _BLOCK.finditer(text)
    ]


# A cut run cannot keep what the whole one asserts, and whether this host delivers is not the page's business: INVALID
# (exit code 3) counts as run.
_TWIN = """
case " $* " in
*" --fidelity flow "*) ;;
" run "*) "{python}" -P -m scenarios.cli "$@" --duration {seconds} --set assert=[] || [ $? = 3 ]; exit ;;
esac
exec "{python}" -P -m scenarios.cli "$@"
"""


class Shell:
    """Runs blocks one after the other, each in the folder where the one before it ended.

    ``.venv`` in the first folder is a virtual environment of its own: it sees what is installed here and takes
    plug-ins without touching it. ``sudo`` runs the command as it is,
    ``make`` only checks that the target is there (what it runs is what the tests around this one are), and
    emulation runs are cut to :data:`EMULATION_S`. Journals of runs that are not emulations are kept apart.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cwd = folder
        self._where = folder / ".cwd"
        self._bin = folder / ".venv" / "bin"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / ".venv")], check=True, timeout=60)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        here = next(path for path in sys.path if path.endswith("site-packages"))
        site = folder / ".venv" / "lib" / version / "site-packages"
        (site / "here.pth").write_text(f"import site; site.addsitedir({here!r})\n", encoding="utf-8")
        python = self._bin / "python"
        self._program("twin", _TWIN.format(python=python, seconds=EMULATION_S))
        self._program("pip", f'exec "{python}" -m pip --disable-pip-version-check -q "$@"')
        self._program("pytest", f'exec "{python}" -m pytest -q -p no:cacheprovider "$@"')
        self._program("sudo", 'exec "$@"')
        self._program("make", f'exec "{shutil.which("make")}" -n -C "{ROOT}" "$@" >/dev/null')
        (folder / "scenarios").symlink_to(ROOT / "scenarios")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))},
            "PATH": f"{self._bin}:{os.environ['PATH']}",
            "VIRTUAL_ENV": str(folder / ".venv"),
            "HOME": str(folder),
            # stable-baselines3 leaves a folder for each model that learns without a logger of its own.
            "TMPDIR": str(folder / ".tmp"),
        }
        (folder / ".tmp").mkdir()

    def _program(self, name: str, script: str) -> None:
        path = self._bin / name
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(0o755)

    def run(self, block: Block, *, timeout_s: float = 60.0) -> str:
        """Do what a block says and return what it printed; AssertionError with the output when it fails."""
        if block.file:
            path = self.cwd / block.file
            path.write_text(block.text, encoding="utf-8")
            return ""
        if block.language == "python":
            program, script = [str(self._bin / "python"), "-W", "error", "-"], block.text
        else:
            program = ["bash", "-s"]
            script = f"set -euo pipefail\n{block.commands}\npwd >'{self._where}'\n"
        environment = dict(self.environment)
        if not block.emulation:
            environment["TWINBED_STATE"] = str(self.folder / ".state")
        begun_s = time.monotonic()
        done = subprocess.run(
            program,
            input=script,
            cwd=self.cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        print(f"line {block.line}: {time.monotonic() - begun_s:.1f} s")
        output = done.stdout + done.stderr
        assert done.returncode == 0, f"line {block.line}: exit code {done.returncode}\n{script}\n{output}"
        if block.language == "console":
            self.cwd = Path(self._where.read_text(encoding="utf-8").strip())
        return output
