"""Tests that several emulated devices, and several processes, give the same results as one."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn2gnn_jax import config as configs
from cnn2gnn_jax import distillers, gnn, networks
from cnn2gnn_jax.config import RECIPES
from cnn2gnn_jax.configs import digits
from cnn2gnn_jax.evaluation import protocols
from cnn2gnn_jax.evaluation.outputs import network_outputs
from cnn2gnn_jax.runtime import storage
from cnn2gnn_jax.runtime.devices import ONE, from_config
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.training import fit, head_table, loop
from cnn2gnn_jax.training.fit import Job
from cnn2gnn_jax.training.metrics import read_records
from cnn2gnn_jax.training.model import TrainedModel, trained_model
from cnn2gnn_jax.training.state import head_rows, init_state, state_axes
from cnn2gnn_jax.training.task import Task

ROOT = pathlib.Path(__file__).parents[2]
ROWS, BATCH = 50, 10
BOTH = ["shard_map", pytest.param("pmap", marks=pytest.mark.slow)]


def devices(count, backend="shard_map", seeds=False, shard_head=False):
    return from_config(types.SimpleNamespace(devices=count, backend=backend, seeds=seeds, shard_head=shard_head))


def task(seed=0, **fields):
    recipe = RECIPES["paper"] | {"epochs": 2, "batch_size": BATCH, "head_update": "rows", "chunk_steps": 2}
    recipe |= {"epoch": "last", **fields}
    labels = distillers.create("none", {})
    module = gnn.GraphStudent(3, gnn.Flatten(), sparsity=3, hidden=4, head_widths=(4, 4))
    recipe = types.SimpleNamespace(**recipe)
    return Task(module, labels, labels.stages[0], recipe, ROWS // BATCH, ROWS, seed, mean=(0.5,), std=(0.25,))


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    label = np.arange(ROWS, dtype=np.int32) % 3
    images = (rng.integers(0, 128, (ROWS, 4, 4, 1)) + 60 * label[:, None, None, None]).astype(np.uint8)
    return {"input": images, "label": label}


def on_disk(folder, data, seeds, devices, **fields):
    """Trains, and returns the parameters, the BatchNorm statistics and all head rows of each seed."""
    jobs = [Job(task(seed, **fields), f"seed{seed}", folder / f"seed{seed}", f"run/seed{seed}") for seed in seeds]
    setting = fit.Setting(folder / "metrics.jsonl", every_seconds=0, devices=devices)
    loads = fit.fit_on_disk(jobs, lambda: data, lambda task, state: 0.0, setting)
    states = [load() for load in loads]
    rows = [head_rows(job.task, state, np.arange(ROWS), devices) for job, state in zip(jobs, states, strict=True)]
    return [(state.params, state.stats, actual) for state, actual in zip(states, rows, strict=True)]


# One step, many devices -----------------------------------------------------------------------------------------------


def spread(kinds, cases, images, x64=True):
    """Runs `spread_program.py` and returns the JSON objects that it prints."""
    asked = json.dumps({"kinds": kinds, "cases": cases, "images": images})
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "JAX_ENABLE_X64": str(int(x64))}
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "spread_program.py", asked],
        **{"env": environment, "cwd": ROOT, "capture_output": True, "text": True, "timeout": 3000},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_hundred_images_on_eight_devices_train_as_on_one():
    cases = [[8, "shard_map", True]]
    lines = spread(["graph"], cases, 200)
    assert [line["case"] for line in lines] == cases
    for line in lines:
        assert line["dtype"] == "float64" and line["steps"] == 4
        assert line["relative_difference"] < 1e-8
        assert line["classes_differ"] == 0


# The methods ft and crd are tested in float64 only. Where rounding moves a number past the corner of a ReLU, the
# gradient jumps. In float32 the trained states therefore differ by up to 5e-3. (With softplus instead of ReLU, the
# difference of a teacher falls from 2e-4 to 7e-8.)
@pytest.mark.slow
@pytest.mark.parametrize(("x64", "more", "most"), [(True, ["ft", "crd"], 1e-8), (False, [], 1e-3)])
def test_trained_states_are_equal_on_1_2_and_8_devices(x64, more, most):
    cases = [[2, "shard_map", True], [2, "pmap", False], [8, "shard_map", False], [8, "pmap", True]]
    lines = spread(["teacher", "cnn", "graph", "dense", "ab", *more], cases, 1000, x64)
    assert len(lines) == 4 * (5 + len(more))
    for line in lines:
        assert line["steps"] == 20
        assert line["relative_difference"] < most, line
        assert not x64 or line["classes_differ"] == 0, line


# The head's table -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backend", "count"), [("pmap", 8), pytest.param("shard_map", 4, marks=pytest.mark.slow)])
def test_a_checkpoint_of_a_sharded_head_goes_on_with_any_number_of_devices(data, tmp_path, backend, count):
    [whole] = on_disk(tmp_path / "whole", data, [0], devices(1))
    on_disk(tmp_path / "moved", data, [0], devices(count, backend, shard_head=True), epochs=1)
    [moved] = on_disk(tmp_path / "moved", data, [0], devices(3, shard_head=True))  # 50 rows are padded to 51
    chex.assert_trees_all_close(moved, whole, rtol=1e-4, atol=1e-5)
    [restored] = on_disk(tmp_path / "moved", data, [0], devices(1))
    chex.assert_trees_all_close(restored, moved, rtol=1e-6)
    assert [record["step"] for record in read_records(tmp_path / "moved" / "metrics.jsonl")] == list(range(1, 11))


def test_each_device_draws_and_keeps_its_own_rows():
    on = devices(8, shard_head=True)
    make = lambda: head_table.init(jax.random.key(0), 80, 6)  # noqa: E731
    at = on.shardings(0, jax.eval_shape(make))
    table = jax.jit(make, out_shardings=at)()
    assert {shard.data.shape for shard in table.values.kernel.addressable_shards} == {(10, 6)}
    chex.assert_trees_all_close(jax.device_get(table), jax.device_get(make()), rtol=1e-6)
    fewer = head_table.init(jax.random.key(0), 77, 6)
    np.testing.assert_allclose(fewer.values.kernel, table.values.kernel[:77], rtol=1e-6)


@pytest.mark.slow
def test_a_step_with_two_million_rows_on_eight_devices_costs_as_much_as_with_twenty_thousand():
    small, large = 20_000, 2_000_000
    on, seconds, chunks = devices(8, shard_head=True), {small: [], large: []}, {}
    steps, width = 20, 256
    for rows in (small, large):
        this = dataclasses.replace(task(batch_size=100), rows=rows)
        this = dataclasses.replace(this, module=this.module.clone(head_widths=(512, width), sparsity=50))
        axes = state_axes(this, 1, on)
        fresh = lambda this=this: init_state(this, jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.uint8), None)  # noqa: E731
        state = jax.jit(fresh, out_shardings=on.shardings(axes, jax.eval_shape(fresh)))()
        held = {shard.data.shape for leaf in state.table.values for shard in leaf.addressable_shards}
        assert held == {(rows // 8, width), (rows // 8,)}
        chunks[rows] = [loop.make_chunk(this, 1, on), state]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (steps, 104, 8, 8, 1)).astype(np.uint8)
    for _ in range(8):
        for rows, (chunk, state) in chunks.items():
            index = rng.integers(0, rows, (steps, 104)).astype(np.int32)
            mask, label = np.broadcast_to(np.arange(104) < 100, index.shape), index % 3
            feed = on.split({"index": index, "mask": np.array(mask), "input": images, "label": label}, 1)
            begun = time.monotonic()
            chunks[rows][1], metrics = chunk(state, {}, None, feed, np.int32(0))
            assert np.all(np.isfinite(metrics["loss"]))
            seconds[rows].append(time.monotonic() - begun)
    ratio = min(seconds[large][1:]) / min(seconds[small][1:])
    assert ratio < 1.3, (ratio, seconds)


# Seeds, evaluation, refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BOTH)
def test_seeds_over_devices_train_as_on_one(data, tmp_path, backend):
    spread_out = on_disk(tmp_path / "spread", data, [0, 1, 2], devices(2, backend, seeds=True))
    chex.assert_trees_all_close(
        spread_out, on_disk(tmp_path / "one", data, [0, 1, 2], devices(1)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("backend", BOTH)
def test_evaluation_over_devices_counts_every_image_once(data, backend):
    on, rng = devices(8, backend), np.random.default_rng(1)
    images = rng.integers(0, 255, (37, 8, 8, 3)).astype(np.uint8)
    network = networks.create("resnet8", 5)
    variables = jax.jit(lambda: network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3))))()
    model = TrainedModel(network, variables, (0.5,) * 3, (0.2,) * 3, tuple("abcde"))
    on_one, on_several = (network_outputs(model, images, used) for used in (ONE, on))
    assert on_one[0].shape == (37, 5)
    chex.assert_trees_all_close(on_several, on_one, rtol=1e-4, atol=1e-5)

    this = task()
    state = jax.jit(lambda: init_state(this, data["input"], None))()
    anchors = (np.arange(20, dtype=np.int32), data["label"][:20], data["input"][:20])
    model = trained_model(this, state, ("a", "b", "c"), [anchors])
    on_one, on_several = (
        protocols.graph_protocols(model, data["input"], data["label"], protocols.Settings(7, 0, "similar", used))
        for used in (ONE, on)
    )
    for actual, expected in zip(on_several, on_one, strict=True):
        assert (actual["mechanism"], actual["batch_order"]) == (expected["mechanism"], expected["batch_order"])
        assert actual["accuracy"] == pytest.approx(expected["accuracy"])
        assert actual["diagnostics"] == pytest.approx(expected["diagnostics"], rel=1e-4)


def test_a_batch_is_split_with_padding_at_its_end(data):
    actual = loop.feed([task()], 1, 3, {"label": data["label"]}, devices(4))
    plain = loop.feed([task()], 1, 3, {"label": data["label"]})
    assert {name: array.shape for name, array in actual.items()} == dict.fromkeys(("index", "mask", "label"), (2, 12))
    np.testing.assert_array_equal(actual["mask"], np.tile(np.arange(12) < BATCH, (2, 1)))
    np.testing.assert_array_equal(actual["index"][:, :BATCH], plain["index"])
    np.testing.assert_array_equal(actual["label"][:, :BATCH], plain["label"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parallel.devices": 9}, "JAX finds 8"),
        ({"parallel.seeds": True, "parallel.shard_head": True}, "leave parallel.shard_head out"),
        ({"parallel.shard_head": True, "student.train.optimizer": "adamw"}, "head_update rows"),
    ],
)
def test_impossible_device_settings_are_refused(fields, message):
    config = digits.get_config("smoke")
    config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=message):
        from_config(configs.resolve(config).parallel)


def test_the_devices_do_not_change_the_fingerprint_of_a_run():
    config = digits.get_config("smoke")
    fingerprint = configs.student_fingerprint(configs.resolve(config), "data")
    fields = {"parallel.devices": 0, "parallel.backend": "pmap", "parallel.shard_head": True}
    config.update_from_flattened_dict(fields)
    assert configs.student_fingerprint(configs.resolve(config), "data") == fingerprint


# Processes ------------------------------------------------------------------------------------------------------------


def flags(folder):
    return [
        *("configs/digits.py:smoke", f"--workdir={folder / 'run'}", f"--config.cache_dir={folder / 'cache'}"),
        *("--config.checkpoint.every_seconds=0", "--config.student.sparsity=20", "--config.evaluate.graph_off=False"),
        *("--config.student.stem_widths=(8, 16)", "--config.student.train.chunk_steps=1"),
        # There are enough chunks for the processes to agree on where to stop, which takes seconds. The learning rate is
        # low, so that rounding errors of float32 grow little from step to step.
        *(
            "--config.student.train.epochs=15",
            "--config.student.train.learning_rate=0.001",
            "--config.teacher.train.chunk_steps=7",
            "--config.tensorboard=False",
        ),
    ]


def lines_of(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(process, log, reached):
    until = time.monotonic() + 300
    while time.monotonic() < until and process.poll() is None and not reached():
        time.sleep(0.02)
    assert process.poll() is None, log.read_text()


@pytest.mark.slow
def test_two_processes_that_are_stopped_and_lose_one_end_with_the_results_of_one_process(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "PORT": "12377"}
    environment |= {"PROCESSES": "2", "DEVICES": "4"}
    records, log = tmp_path / "two" / "run" / "metrics.jsonl", tmp_path / "log.txt"

    def start():
        with open(log, "w") as output:
            command = ["launch/multiprocess.sh", *flags(tmp_path / "two")]
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)

    stopped = start()
    wait_for(stopped, log, lambda: lines_of(records) >= 4)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(120) == 75
    assert "stopped by SIGTERM after step" in log.read_text()

    before = lines_of(records)
    robbed = start()
    wait_for(robbed, log, lambda: lines_of(records) >= before + 4)
    children = subprocess.run(["pgrep", "-P", str(robbed.pid)], capture_output=True, text=True).stdout.split()
    for pid in children:
        if b"--process_id=1" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(int(pid), signal.SIGKILL)
    begun = time.monotonic()
    assert robbed.wait(120) != 0
    assert time.monotonic() - begun < 60
    assert "a process was lost" in log.read_text() or "another task died" in log.read_text()

    assert start().wait(500) == 0, log.read_text()
    # Both runs have the same teacher. Rounding errors of float32 grow with each step, and those of another training of
    # the teacher would be added.
    shutil.copytree(tmp_path / "two" / "cache", tmp_path / "one" / "cache")
    command = [sys.executable, "-m", "cnn2gnn_jax.main", f"--config={flags(tmp_path / 'one')[0]}"]
    alone = {**environment, "JAX_PLATFORMS": "cpu"}
    subprocess.run([*command, *flags(tmp_path / "one")[1:]], cwd=ROOT, env=alone, check=True, timeout=500)
    on_two, on_one = (
        {record["step"]: record["loss"] for record in read_records(tmp_path / name / "run" / "metrics.jsonl")}
        for name in ("two", "one")
    )
    assert list(on_two) == list(on_one) == list(range(1, 211))
    # Rounding errors of float32 grow tenfold in about 40 steps. Both restarts are within the first 80 steps.
    np.testing.assert_allclose([on_two[k] for k in range(1, 81)], [on_one[k] for k in range(1, 81)], rtol=1e-4)
    on_two, on_one = (
        storage.read_json(tmp_path / name / "run" / "results.json")["accuracies"] for name in ("two", "one")
    )
    assert on_two[0]["accuracy"] == pytest.approx(on_one[0]["accuracy"], abs=2)


@pytest.mark.parametrize("name", ["local", "multiprocess", "slurm", "tpu_vm", "gke"])
def test_a_launcher_prints_its_commands(name):
    environment = {**os.environ, "TPU": "slice", "ZONE": "zone", "CLUSTER": "cluster", "IMAGE": "image"}
    environment |= {"TPU_TYPE": "v5litepod-16", "PYTHON": "a python"}
    command = [
        ROOT / "launch" / f"{name}.sh",
        "--dry-run",
        "configs/digits.py:smoke",
        "--workdir=a b",
        "--config.seeds=2",
    ]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert len(shown.splitlines()) == (2 if name == "multiprocess" else 1)
    assert "--config=configs/digits.py:smoke" in shown
    assert "--config.seeds=2" in shown
    assert "a\\ b" in shown or "a\\\\\\ b" in shown
    refused = subprocess.run([ROOT / "launch" / f"{name}.sh"], env=environment, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "Tested on" in refused.stderr


def test_the_array_launcher_gives_each_task_its_shard_and_queues_it_again(tmp_path):
    for name, program in (("srun", 'echo "$@"\nexit ${ENDS:-0}\n'), ("scontrol", 'echo scontrol "$@"\n')):
        (tmp_path / name).write_text("#!/bin/bash\n" + program)
        (tmp_path / name).chmod(0o755)

    def launch(*flags, **variables):
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PYTHON": "a python", **variables}
        command = [ROOT / "launch" / "slurm_array.sh", *flags]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    flags = ["configs/sweeps/table1.py:digits", "--out=a b"]
    task = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "4"}
    shown = "srun a\\ python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/table1.py:digits --shard={} --out=a\\ b \n"
    assert launch("--dry-run", *flags) == (0, shown.format("1/1"), "")
    assert launch("--dry-run", *flags, **task) == (0, shown.format("2/4"), "")
    assert launch("--dry-run", *flags, **task, SHARDS="8") == (0, shown.format("2/8"), "")
    ran = "a python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/table1.py:digits --shard=2/4 --out=a b\n"
    assert launch(*flags, **task) == (0, ran, "")
    assert launch(*flags, **task, ENDS="2") == (2, ran, "")
    assert launch(*flags, **task, ENDS="75") == (75, f"{ran}scontrol requeue 7_2\n", "")
    code, _, usage = launch()
    assert code == 2 and "sbatch --array=1-4" in usage and "Tested on" in usage
