"""Fixtures shared by the tests, and the rule that CI skips nothing by accident."""

import contextlib
import os

import pytest
import torch

# What a CI machine may lack; any other skipped test is a missing install.
MAY_SKIP = ("needs a CUDA device", "needs OpenGL", "needs namespaces", "slurm-wlm")


@pytest.fixture
def float64():
    """Oracles in double precision; training itself runs in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def closed():
    """closed(thing) is the thing, which is closed when the test ends, however it ends."""
    with contextlib.ExitStack() as stack:
        yield lambda thing: stack.enter_context(contextlib.closing(thing))


@pytest.fixture
def opened(closed):
    """`make` whose environments are closed at the end."""
    from vector_envs import make

    return lambda *args, **kwargs: closed(make(*args, **kwargs))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    """In CI a skipped test whose reason is not in MAY_SKIP fails the run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not os.environ.get("CI") or reporter is None:
        return
    reasons = [report.longrepr[2] for report in reporter.stats.get("skipped", [])]
    unexpected = sorted({reason for reason in reasons if not any(may in reason for may in MAY_SKIP)})
    for reason in unexpected:
        reporter.write_line(f"skipped in CI: {reason}", red=True)
    if unexpected and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
