"""The pytest plugin, in pytest runs of their own, with guests on a fake KVM."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import fake_bench  # noqa: F401 - or every run of pytest would import it anew
import pytest

from minivmm import pytest_plugin as plugin
from minivmm.accel import Accel
from minivmm.pytest_plugin.conditions import LAB_MARK, fits

pytest_plugins = ["pytester"]

CONFTEST = """
import pytest
from fake_bench import fake_kvm

@pytest.fixture(autouse=True, scope="session")
def no_kvm():
    with fake_kvm():
        yield
"""

BARE = [word for name in ("cacheprovider", "hypothesispytest") for word in ("-p", f"no:{name}")]
"""Hypothesis takes seconds to be imported, which each of these runs would do anew."""

INSTALLED = any(one.name == "minivmm" for one in entry_points(group="pytest11"))
PLUGIN = () if INSTALLED else ("-p", "minivmm.pytest_plugin")


@pytest.fixture
def bench(pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A directory for tests; a cache with two kernels, a runtime directory with a short path."""
    monkeypatch.setenv("MINIVMM_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MINIVMM_LAB", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    for release in ("6.1.0-56-fake", "6.12.9-fake"):
        kernel = tmp_path / "cache/minivmm/kernels" / release
        (kernel / "modules").mkdir(parents=True)
        (kernel / "vmlinuz").write_bytes(b"")
        (kernel / "config").write_text("CONFIG_VIRTIO_MEM=m\n# CONFIG_KEXEC is not set\n")
    pytester.makeconftest(CONFTEST)
    return Bench(pytester)


class Bench:
    """Runs pytest on a test module."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self._pytester = pytester

    def run(self, module: str, *options: str, apart: bool = False) -> pytest.RunResult:
        self._pytester.makepyfile(module)
        run = self._pytester.runpytest_subprocess if apart else self._pytester.runpytest_inprocess
        return run(*PLUGIN, *BARE, "-rA", *options)

    def ini(self, text: str) -> None:
        self._pytester.makeini(f"[pytest]\n{text}\n")


def test_a_guest_runs_commands_and_has_a_device(bench: Bench) -> None:
    result = bench.run(
        """
        def test_it(guest, kernel):
            assert guest.run("echo hi", check=True).stdout == "hi\\n"
            assert guest.mem["vmem0"].size == 4 << 30
            assert kernel.release == "6.12.9-fake"
        """
    )

    result.assert_outcomes(passed=1)


def test_kernels_and_device_options_are_parameters(bench: Bench) -> None:
    result = bench.run(
        """
        def test_it(guest, kernel):
            device = guest.spec.devices[0]
            print("ran", kernel.release, device.packed, device.block_size >> 20)
        """,
        "--minivmm-kernel=6.12,6.1",
        "--minivmm-device-options=packed=on",
        "--minivmm-device-options=block-size=4M",
    )

    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines_random(
        [
            "PASSED *test_it*6.12*packed=on*",
            "ran 6.12.9-fake True 2",
            "ran 6.12.9-fake False 4",
            "ran 6.1.0-56-fake True 2",
            "ran 6.1.0-56-fake False 4",
        ]
    )


def test_options_that_a_test_or_nobody_has(bench: Bench) -> None:
    module = "def test_it(guest): pass"

    skipped = bench.run(module, "--minivmm-device-options=max_bytes=1M")
    failed = bench.run(module, "--minivmm-device-options=pakced=on")

    skipped.assert_outcomes(skipped=1)
    skipped.stdout.fnmatch_lines(["SKIPPED*: no device of this test has max_bytes*"])
    failed.assert_outcomes(errors=1)
    failed.stdout.fnmatch_lines(["*--minivmm-device-options pakced: no device has that*"])


def test_markers_and_parameters_make_the_machine(bench: Bench) -> None:
    result = bench.run(
        """
        import pytest, minivmm
        pytestmark = pytest.mark.minivmm_machine(memory="128M", cpus=2)

        @pytest.mark.minivmm_machine(memory="64M", devices=["virtio-rng-pci"])
        def test_nearest_wins(guest):
            assert (guest.spec.memory >> 20, guest.spec.cpus, len(guest.mem)) == (64, 2, 0)

        @pytest.mark.parametrize("guest", [{"cpus": 1}, {"cpus": 3}], indirect=True)
        def test_parameters(guest):
            assert (guest.spec.memory >> 20, guest.spec.cpus in (1, 3)) == (128, True)

        def test_several(guest, guest_factory):
            second = guest_factory(memory="64M", devices=[minivmm.VirtioMem("1G", id="x")])
            assert second.name != guest.name and list(second.mem) == ["x"]
        """
    )

    result.assert_outcomes(passed=4)


def test_a_failure_shows_console_trace_and_diagnosis(bench: Bench) -> None:
    result = bench.run(
        """
        import time
        from fake_bench import guest_of

        def test_it(guest):
            guest_of(guest).print("Oops: it hurts\\r\\n")
            guest.console.expect("hurts")
            guest.mem["vmem0"].resize("64M")
            assert guest.run("echo no; exit 1").status == 0
        """
    )

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*minivmm: console of py* (running)*",
            "Oops: it hurts",
            "*minivmm: trace of py*",
            "* vmem0 resize *",
            "*minivmm: memory of py*",
            "vmem0: 0 of 64M plugged",
            "*no-driver*",
            "*remedy: *",
        ]
    )


def test_a_passing_test_shows_nothing_of_it(bench: Bench) -> None:
    result = bench.run("def test_it(guest): pass")

    assert "console of" not in result.stdout.str()


def test_every_skip_says_why(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    module = """
        import pytest

        @pytest.mark.minivmm_kernel(">=6.8", "<7")
        def test_new(guest): pass

        @pytest.mark.minivmm_config("VIRTIO_MEM", "CONFIG_KEXEC")
        def test_kexec(guest): pass

        @pytest.mark.minivmm_config("VIRTIO_MEM")
        def test_driver(guest): pass

        @pytest.mark.minivmm_accel("lab")
        def test_lab(guest): pass
        """
    result = bench.run(module, "--minivmm-kernel=6.1")

    result.assert_outcomes(passed=1, skipped=3)
    result.stdout.fnmatch_lines_random(
        [
            "SKIPPED*: needs a kernel >=6.8: this one is 6.1.0-56-fake",
            "SKIPPED*: needs a kernel with CONFIG_KEXEC: 6.1.0-56-fake has it not",
            "SKIPPED*: runs in the lab only: pytest --minivmm-lab",
        ]
    )
    monkeypatch.setenv("MINIVMM_LAB", "1")
    bench.run(module, "--minivmm-kernel=6.12").assert_outcomes(passed=3, skipped=1)


@pytest.mark.parametrize(
    ("release", "wanted", "fine"),
    [
        ("6.12.117+deb12-cloud", ">=6.8", True),
        ("6.12.117+deb12-cloud", "==6.12", True),
        ("6.12.117+deb12-cloud", "<6.12", False),
        ("6.1.0-56", ">6.1", False),
        ("6.1", "!=6.1.0", False),
        ("6.10", ">6.9", True),
        ("", ">=6", False),
    ],
)
def test_versions_compare_as_numbers(release: str, wanted: str, fine: bool) -> None:
    assert fits(release, wanted) is fine


@pytest.mark.parametrize("marker", ["minivmm_kernel('6.8')", "minivmm_accel('tcg')"])
def test_a_marker_that_is_not_understood_ends_the_run(bench: Bench, marker: str) -> None:
    result = bench.run(f"import pytest\n@pytest.mark.{marker}\ndef test_it(guest): pass")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*is not understood: write*"])


def test_what_is_missing_fails_or_is_skipped_as_told(bench: Bench) -> None:
    module = "def test_it(guest): pass"

    failed = bench.run(module, "--minivmm-kernel=5.10")
    skipped = bench.run(module, "--minivmm-kernel=5.10", "--minivmm-missing=skip")

    failed.assert_outcomes(errors=1)
    failed.stdout.fnmatch_lines(["*try `minivmm kernel fetch 5.10`*"])
    skipped.assert_outcomes(skipped=1)
    skipped.stdout.fnmatch_lines(["SKIPPED*try `minivmm kernel fetch 5.10`*"])


def test_a_guest_may_be_kept_for_a_module(bench: Bench) -> None:
    bench.ini("minivmm_guest_scope = module\nminivmm_kernels = 6.1")

    result = bench.run(
        """
        seen = []
        def test_one(guest): seen.append(guest)
        def test_two(guest, kernel): assert seen == [guest] and kernel.release.startswith("6.1.")
        """
    )

    result.assert_outcomes(passed=2)


@pytest.fixture
def gateway(pytester: pytest.Pytester) -> Iterator[str]:
    """Another host, on loopback: what --tx calls it. Whoever connects there may run anything."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "execnet.script.socketserver", f"127.0.0.1:{port}"]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(words, cwd=pytester.path, stdin=quiet, stdout=quiet, stderr=quiet)
    deadline = time.monotonic() + 20
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert server.poll() is None and time.monotonic() < deadline, "the gateway did not start"
        time.sleep(0.05)
    yield f"socket=127.0.0.1:{port}//chdir={pytester.path}"
    server.kill()
    server.wait()


def test_workers_here_and_on_another_host_have_guests_of_their_own(
    bench: Bench, gateway: str
) -> None:
    result = bench.run(
        """
        import pytest

        @pytest.mark.parametrize("n", range(6))
        def test_it(guest, n):
            assert guest.run("echo hi").stdout == "hi\\n"

        def test_bad(guest):
            assert guest.run("true").status == 1
        """,
        "--dist=load",
        "--tx=popen",
        f"--tx={gateway}",
        apart=True,
    )

    result.assert_outcomes(passed=6, failed=1)
    result.stdout.fnmatch_lines(["*minivmm: console of py*"])


def test_the_lab_gets_the_whole_session(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    class FakeLab:
        def __init__(self, kernel: object, *, memory: int) -> None:
            assert memory == 4 << 30

        def __enter__(self) -> FakeLab:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def run(self, words: list[str], *, cwd: str) -> int:
            asked.append(words)
            assert Path(cwd) == Path.cwd()
            return 1

    monkeypatch.setattr("minivmm.lab.lab.Lab", FakeLab)
    bench.ini("minivmm_lab_memory = 4G")
    module = "def test_it(): pass"

    assert bench.run(module, "--minivmm-lab", "-k", "it").ret == 1
    assert "pytest" in asked[0]
    assert asked[0][-3:] == ["--minivmm-lab", "-k", "it"]
    bench.run(module, "--minivmm-lab", "--collect-only")
    monkeypatch.setenv(LAB_MARK, "1")
    bench.run(module, "--minivmm-lab").assert_outcomes(passed=1)
    assert len(asked) == 1
    monkeypatch.delenv(LAB_MARK)
    bench.ini("minivmm_lab = auto\nminivmm_lab_memory = 4G")
    monkeypatch.setattr("minivmm.accel.probe", lambda: Accel(True, "a good one"))
    bench.run(module).assert_outcomes(passed=1)
    monkeypatch.setattr("minivmm.accel.probe", lambda: Accel(False, "a bad one"))
    assert bench.run(module).ret == 1
    assert len(asked) == 2


def test_a_setting_that_is_none_is_an_error_of_usage(bench: Bench) -> None:
    bench.ini("minivmm_lab = sometimes")

    result = bench.run("def test_it(): pass")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*minivmm_lab = sometimes is not one of never, always, auto*"])


def test_pytest_does_not_rewrite_the_machine(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = request.config.pluginmanager
    hook = manager.rewrite_hook
    hook.mark_rewrite("minivmm_of_a_wheel")
    assert "minivmm_of_a_wheel" in hook._must_rewrite  # type: ignore[union-attr]
    monkeypatch.setattr(hook, "_must_rewrite", {"minivmm", "other"}, raising=True)

    plugin._spare_rewriting(manager)

    assert hook._must_rewrite == {"other"}  # type: ignore[union-attr]
