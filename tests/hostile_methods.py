"""Methods that harm their process in every way we know, as the text of plugin files. Each keeps the plain loss beside it."""

from __future__ import annotations

HEAD = '''
import os, random, signal, sys, threading, time

import numpy as np
import torch

from ltbench.methods import Method, mean_square

{module}


class Hostile(Method):
    """Does harm."""

    def __init__(self, task):
        super().__init__(task)
        self.calls = 0
        {init}

    def loss(self, net, draw):
        self.calls += 1
        (out,) = self.run(net, draw, draw.y_in)
        plain = mean_square(out.pred, draw.target)
        {loss}
        return {{"denoise": plain}}
'''

# name: (where, code). With 4 steps of one forward each, `calls` counts steps.
CODE = {
    "raises_on_import": ("module", 'raise RuntimeError("not today")'),
    "raises_in_init": ("init", 'raise KeyError("no such option")'),
    "raises_at_step": ("loss", 'if self.calls == 3: raise ValueError("enough")'),
    "hangs_on_import": ("module", "while True: time.sleep(0.01)"),
    "hangs_in_loss": ("loss", "while self.calls == 2: pass"),
    "gives_nan": ("loss", "plain = plain / 0 if self.calls > 2 else plain"),
    "wrong_shape": ("loss", 'return {"pixels": out.pred}'),
    "exits": ("loss", "sys.exit(3)"),
    "dies": ("loss", "if self.calls == 2: os._exit(7)"),
    "eats_memory": ("loss", "bytearray(1 << 60)"),
    "eats_tensors": ("loss", "torch.empty(1 << 50)"),
    "changes_dtype": ("loss", "torch.set_default_dtype(torch.float64)"),
    "changes_dtype_on_import": ("module", "torch.set_default_dtype(torch.float64)"),
    "changes_grad_mode": ("loss", "torch.set_grad_enabled(False)"),
    "changes_threads": ("init", "torch.set_num_threads(3)"),
    # From here on the method ends with a result of its own.
    "changes_cwd": ("loss", 'os.chdir("/")'),
    "changes_environment": ("module", 'os.environ["LTBENCH_PLUGINS"] = ""; os.environ["HOME"] = "/nowhere"'),
    "changes_handlers": (
        "init",
        "signal.signal(signal.SIGALRM, signal.SIG_DFL); signal.setitimer(signal.ITIMER_REAL, 40)",
    ),
    "changes_batch": (
        "loss",
        "draw.xt.data.zero_(); draw.y.zero_(); draw.target.data.add_(1); self.task.class_counts.zero_()",
    ),
    "uses_global_random": (
        "loss",
        "torch.rand(3); plain = plain * (1 + 0.1 * (torch.rand(()) + np.random.rand() + random.random()))",
    ),
    "floods": ("loss", 'print("x" * 4_000_000); os.write(2, b"y" * 4_000_000)'),
    "forks": ("loss", "os.fork()"),
    "forks_and_stays": ("init", "os.fork() or time.sleep(600)"),
    "leaves_a_thread": ("init", "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()"),
}
FINISHES = tuple(CODE)[tuple(CODE).index("changes_cwd") :]


def source(name: str) -> str:
    """The text of the plugin file."""
    where, code = CODE[name]
    places = {"module": "", "init": "pass", "loss": "pass"}
    return HEAD.format(**{**places, where: code})
