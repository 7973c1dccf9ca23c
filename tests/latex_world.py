"""A real LaTeX where there is one: pdflatex or tectonic; a loud skip otherwise, a failure where LTBENCH_REQUIRE names it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs}%s
\begin{document}
%s
\end{document}
"""


@pytest.fixture
def latex(tmp_path):
    """Set a document around a body that may \\input files of the test's folder: the log. Fails with it where LaTeX stops."""
    found = next((name for name in ("pdflatex", "tectonic") if shutil.which(name)), None)
    if found is None:
        message = (
            "neither pdflatex nor tectonic is installed (Debian: texlive-latex-recommended): no LaTeX was set"
        )
        if "latex" in os.environ.get("LTBENCH_REQUIRE", ""):
            pytest.fail(message)
        pytest.skip(message)

    def compile_(body: str, packages: str = "", folder: Path = tmp_path) -> str:
        (folder / "main.tex").write_text(DOCUMENT % (packages, body))
        words = (
            ["-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape"]
            if found == "pdflatex"
            else ["--keep-logs"]
        )
        done = subprocess.run(
            [found, *words, "main.tex"],
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        log = folder / "main.log"
        text = log.read_text(errors="replace") if log.is_file() else done.stdout + done.stderr
        assert done.returncode == 0, text[-3000:]
        assert (folder / "main.pdf").stat().st_size > 1000
        return text

    return compile_
