"""From the command line and config files to a machine's spec, and back to a command line."""

import argparse
import json
from pathlib import Path

import pytest

from minivmm.cli import boot, main
from minivmm.cli.lab import boot_arguments
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.errors import ExitStatus, UsageError
from minivmm.machine_spec import MachineSpec
from minivmm.units import GIB, MIB


@pytest.fixture(autouse=True)
def no_user_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "minivmm" / "config.json"


def parse(*words: str) -> argparse.Namespace:
    own = main.own_words(["boot", *words])
    args = main.parser_for(own).parse_args(own)
    args.command = list(words[len(own) :])
    return args


def spec(*words: str) -> MachineSpec:
    return boot.spec_from(parse(*words))


def test_defaults() -> None:
    assert spec() == MachineSpec()


def test_every_option_reaches_the_spec(tmp_path: Path) -> None:
    kernel = tmp_path / "bzImage"
    kernel.touch()

    found = spec(
        *("-m", "1GiB", "-p", "4", "-n", "box", "-i", "/i.img", "--modules", "/lib/m"),
        *("-a", "quiet loglevel=3", "-a", "panic=1", "--online", "online_kernel"),
        *("--phys-bits", "40"),
        *("--device", "virtio-mem-pci,id=a,size=4G,block-size=4M", "--mem-device", "size=1G"),
        str(kernel),
    )

    assert found == MachineSpec(
        name="box",
        memory=GIB,
        cpus=4,
        phys_bits=40,
        kernel=str(kernel),
        modules="/lib/m",
        initrd="/i.img",
        online="online_kernel",
        append=("quiet loglevel=3", "panic=1"),
        devices=(
            VirtioMemSpec(id="a", size=4 * GIB, block_size=4 * MIB),
            VirtioMemSpec(id="vmem0", size=GIB),
        ),
    )


def test_the_kernel_is_positional_or_k_but_not_both() -> None:
    assert spec("6.12").kernel == spec("-k", "6.12").kernel == "6.12"
    with pytest.raises(UsageError, match="two kernels"):
        spec("6.12", "-k", "6.1")


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vmlinux").touch()

    found = spec("vmlinux", "-i", "my.img")

    assert found.kernel == str(tmp_path / "vmlinux")
    assert found.initrd == str(tmp_path / "my.img")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["-m", "512MB"], "ambiguous"),
        (["-m", "x"], "not understood"),
        (["-p", "0"], "out of range"),
        (["-p", "two"], "not a number"),
        (["--phys-bits", "35"], "phys-bits 35 is out of range: use 36 to 52"),
        (["--phys-bits", "53"], "out of range"),
        (["--online", "sometimes"], "online_movable"),
        (["--device", "virtio-mem"], "virtio-mem-pci"),
        (["--device", "virtio-mem-pci,size=4G,blocksize=2M"], "block-size"),
        (["--device", "virtio-mem-pci"], "size= is required"),
        (["--mem-device", "size=3M"], "multiple"),
        (["--mem-device", "id=a,size=4M", "--mem-device", "id=a,size=4M"], "two devices"),
        (["--mem-device", "id=a/b,size=4M"], "'a/b' is not usable"),
        (["--mem-device", "id=console0,size=4M"], "the machine's own"),
        (["--numa", "nod,cpus=0"], "did you mean node"),
        (["--numa", "node,mem=512M,cpus=1"], "cpus=1, but this machine has CPUs 0: .* --cpus 2"),
        (["--numa", "node,mem=1G"], "boot memory 512M .nearest: mem=512M in node 0, -m 1G"),
        (["--numa", "node,mem=512M", "--mem-device", "size=4M,node=1"], "vmem0: node 1"),
        (["--numa", "dist,src=0,dst=0"], "val= is required"),
        (["-k", ""], "kernel: '' is not a text"),
        (["--config", "/nowhere.json"], "does not exist"),
        (["--config", "/dev/zero"], "no regular file"),
    ],
)
def test_what_is_not_acceptable_is_named(words: list[str], why: str) -> None:
    with pytest.raises(UsageError, match=why) as refusal:
        spec(*words)
    assert "\n" not in str(refusal.value)


def test_dry_run_prints_json_that_config_reads_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-m", "1G", "-a", "a b", "--mem-device", "size=4G,requested-size=1G", "-n", "x"]
    words += ["--phys-bits", "40"]

    assert main.run(["boot", "--dry-run", "--json", *words]) == 0

    printed = capsys.readouterr().out
    assert json.loads(printed)["schema"] == 1
    path = tmp_path / "spec.json"
    path.write_text(printed)
    assert spec("--config", str(path)) == spec(*words)
    assert main.run(["boot", "--dry-run", "--json", "--config", str(path)]) == 0
    assert capsys.readouterr().out == printed


NUMA = (
    *("--numa", "node,cpus=0,cpus=3,mem=768M", "--numa", "node,cpus=1-2,mem=256M"),
    *("--numa", "dist,src=0,dst=1,val=31"),
)


def test_numa_is_shown_and_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-m", "1G", "-p", "4", *NUMA, "--mem-device", "size=4G,node=1"]
    path = tmp_path / "spec.json"

    main.run(["boot", "--dry-run", "--json", *words])
    path.write_text(capsys.readouterr().out)
    main.run(["boot", "--dry-run", *words])
    shown = capsys.readouterr().out

    assert spec("--config", str(path)) == spec(*words)
    assert "numa:     node,mem=805306368,cpus=0,cpus=3" in shown
    assert "numa:     node,mem=268435456,cpus=1-2" in shown
    assert "numa:     dist,src=0,dst=1,val=31" in shown


def test_numa_and_devices_replace_those_of_the_config_together(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(
        '{"memory": "1G", "numa": [{"type": "node", "mem": "512M"}, {"type": "node", "cpus": 0,'
        ' "mem": "512M"}], "devices": [{"driver": "virtio-mem-pci", "size": "4G", "node": 1}]}'
    )

    one = ("--numa", "node,mem=1G")
    found = spec("--config", str(path), *one, "--mem-device", "size=2G")

    assert (len(found.numa), found.devices[0].size) == (1, 2 * GIB)
    with pytest.raises(UsageError, match="vmem0: node 1 is not declared"):
        spec("--config", str(path), *one)


def test_options_win_over_config_and_config_over_the_users(
    tmp_path: Path, no_user_config: Path
) -> None:
    no_user_config.parent.mkdir(parents=True)
    no_user_config.write_text('{"memory": "2G", "cpus": 2, "online": "online"}')
    path = tmp_path / "spec.json"
    path.write_text('{"memory": "3G", "cpus": 3}')

    found = spec("--config", str(path), "-m", "4G")

    assert (found.memory, found.cpus, found.online) == (4 * GIB, 3, "online")


@pytest.mark.parametrize("text", ["[1]", "{", '{"bogus": 1}', '{"devices": [1]}', '{"append": 3}'])
def test_bad_config_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "spec.json"
    path.write_text(text)

    with pytest.raises(UsageError):
        spec("--config", str(path))


def test_dry_run_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    main.run(["boot", "--dry-run", "--mem-device", "size=4G"])

    printed = capsys.readouterr().out
    assert "memory:   512M" in printed
    assert "vmem0, 4G" in printed


def test_device_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["boot", "--device", "help"]) == 0
    assert capsys.readouterr().out.split() == [
        "virtio-mem-pci",
        "virtio-balloon-pci",
        "virtio-blk-pci",
        "virtio-rng-pci",
        "vfio-pci",
        "virtio-serial-pci",
    ]
    assert main.run(["boot", "--device", "virtio-mem-pci,help"]) == 0
    printed = capsys.readouterr().out
    assert "requested-size=<size>" in printed
    assert "(required)" in printed


def test_json_alone_is_refused() -> None:
    assert main.run(["boot", "--json"]) == ExitStatus.MINIVMM_FAILED


def test_the_command_is_what_follows_the_dashes() -> None:
    args = main.parser_for(["boot", "6.12"]).parse_args(["boot", "6.12"])
    args.command = ["ls", "-m", "--", "x"]

    assert boot.options_from(args).command == ("ls", "-m", "--", "x")


def test_the_lab_gets_a_command_line_with_the_same_meaning(tmp_path: Path) -> None:
    scenario = tmp_path / "rules.json"
    scenario.write_text('{"rules": [{"silence": true}]}')
    asked = spec(
        *("-m", "1G", "-p", "4", "-k", "6.12", "-a", "-x y", "-n", "box", *NUMA),
        *("--phys-bits", "40"),
        *("--device", "virtio-mem-pci,id=a,size=4G,requested-size=2M,memaddr=0x200000000"),
        *("--mem-device", "size=1G,unplugged-inaccessible=on,node=1"),
    )
    options = boot.BootOptions(
        command=("echo", "--", "-n"),
        stats=True,
        quiet=True,
        trace=Path("/somewhere/t.jsonl"),
        trace_details="requests,memory",
        record=Path("/somewhere/r.jsonl"),
        scenario=scenario,
    )

    words = boot_arguments(asked, options)

    own = main.own_words(["boot", *words])
    args = main.parser_for(own).parse_args(own)
    args.command = words[len(own) :]
    assert boot.spec_from(args) == asked
    assert boot.options_from(args) == options


def test_a_scenario_is_read_before_anything_boots(tmp_path: Path) -> None:
    bad = tmp_path / "rules.toml"
    bad.write_text("[[rules]]\nanswer = \n")

    with pytest.raises(UsageError, match=r"rules\.toml:2: this is no TOML"):
        boot.options_from(parse("--scenario", str(bad)))
    with pytest.raises(UsageError, match="cannot be read"):
        boot.options_from(parse("--scenario", str(tmp_path / "none")))


def test_gdb_and_freeze() -> None:
    def options(*words: str) -> boot.BootOptions:
        return boot.options_from(parse(*boot.prepare(words)))

    assert options("--gdb", "-S") == boot.BootOptions(gdb="127.0.0.1:1234", freeze=True)
    assert options("--gdb=:4321", "6.12").gdb == ":4321"
    assert parse(*boot.prepare(("--gdb", "6.12"))).kernel_word == "6.12"
    with pytest.raises(UsageError, match="--gdb is not understood"):
        options("--gdb=nowhere")
