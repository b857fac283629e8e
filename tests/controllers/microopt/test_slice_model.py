from __future__ import annotations

import dataclasses
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from controllers.microopt.slice_data import DELAY, THROUGHPUT, QosData, SliceModelError, read_qos
from controllers.microopt.slice_fit import RECIPES, Recipe, fit, hull_of
from controllers.microopt.slice_limits import fit_limits
from controllers.microopt.slice_model import QosDistribution, SliceModel, load, save
from controllers.microopt.slice_score import evaluate, validate
from controllers.microopt.slice_surface import write_surface

QUICK = {kind: dataclasses.replace(recipe, steps=150) for kind, recipe in RECIPES.items()}
KINDS = ("paper", "gaussian", "mdn")


def table(rows_per_point: int = 12, *, bimodal: bool = False) -> pd.DataFrame:
    """Rows of a slice that obeys a law: 8 Mbit/s per 1000 millicores, 0.8 of the bandwidth, 11 Mbit/s per user."""
    rng = np.random.default_rng(7)
    rows = []
    for cpu in (500, 1000, 2000, 3000, 4000):
        for bw in (5, 10, 20, 30, 40):
            for users in (1, 2, 3, 4, 5):
                mean = min(0.008 * cpu / users, 0.8 * bw / users, 11.0)
                offset = rng.choice([-0.2, 0.2], rows_per_point) if bimodal else 0.0
                noise = 0.02 if bimodal else 0.1
                qos = mean * (1 + offset + noise * rng.standard_normal(rows_per_point))
                rows += [(cpu, bw, users, max(q, 0.0), 0.01 + 0.05 / max(q, 0.1)) for q in qos]
    return pd.DataFrame(rows, columns=["cpu", "bw", "n_users", "qos", "delay_s"])


def written(tmp_path: Path, frame: pd.DataFrame, name: str = "qos.csv") -> Path:
    path = tmp_path / name
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> QosData:
    return read_qos(written(tmp_path_factory.mktemp("data"), table()))


@pytest.fixture(scope="module")
def models(data: QosData) -> dict[str, SliceModel]:
    return {kind: fit(data, kind=kind, seed=3, recipe=QUICK[kind]) for kind in KINDS}


def mixture() -> QosDistribution:
    return QosDistribution(
        torch.tensor([0.3, 0.7], dtype=torch.float64),
        torch.tensor([1.0, 4.0], dtype=torch.float64),
        torch.tensor([0.5, 0.8], dtype=torch.float64),
    )


def test_a_mixture_has_the_moments_density_and_quantiles_of_its_parts() -> None:
    found = mixture()
    assert float(found.mean()) == pytest.approx(0.3 * 1 + 0.7 * 4)
    second = 0.3 * (0.25 + 1) + 0.7 * (0.64 + 16)
    assert float(found.std()) == pytest.approx(math.sqrt(second - 3.1**2))
    grid = torch.linspace(-5, 12, 20_001, dtype=torch.float64)
    density = found.log_prob(grid).exp()
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1.0, abs=1e-6)
    for level in (0.05, 0.3, 0.5, 0.95):
        assert float(found.cdf(found.quantile(level))) == pytest.approx(level, abs=1e-6)
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 1"):
        found.quantile(1.0)


def test_draws_of_a_mixture_follow_it() -> None:
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(40_000, generator=generator, dtype=torch.float64)
    uniform = torch.rand(40_000, generator=generator, dtype=torch.float64)
    drawn = mixture().sample(normal, uniform)
    for value in (0.5, 1.5, 3.0, 4.5):
        share = float((drawn <= value).double().mean())
        assert share == pytest.approx(float(mixture().cdf(value)), abs=0.01)
    with pytest.raises(ValueError, match="needs uniform draws"):
        mixture().sample(normal)


@pytest.mark.parametrize("components", [1, 3])
def test_the_gradient_of_draws_is_that_of_the_expectation(components: int) -> None:
    """d E[f(q)] / d theta from reparameterised draws, against the integral over the density."""
    generator = torch.Generator().manual_seed(5)
    theta = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    ranks = torch.arange(components, dtype=torch.float64)
    made = QosDistribution(
        torch.softmax(theta * ranks, dim=-1), 2.0 + ranks + theta**2 * (1 + ranks), 0.5 + 0.2 * theta * (1 + ranks)
    )
    normal = torch.randn(60_000, generator=generator, dtype=torch.float64)
    uniform = torch.rand(60_000, generator=generator, dtype=torch.float64)
    (sampled,) = torch.autograd.grad(torch.sigmoid(made.sample(normal, uniform) - 3.0).mean(), theta, retain_graph=True)
    grid = torch.linspace(-6, 16, 8001, dtype=torch.float64)
    expectation = torch.trapezoid(torch.sigmoid(grid - 3.0) * made.log_prob(grid).exp(), grid)
    (exact,) = torch.autograd.grad(expectation, theta)
    assert float(sampled) == pytest.approx(float(exact), rel=0.03)


def test_the_law_of_the_scarce_resource_is_found_again() -> None:
    frame = table().groupby(["n_users", "cpu", "bw"]).qos.agg(["mean", "size"]).reset_index()
    found = fit_limits(
        frame[["n_users", "cpu", "bw"]].to_numpy(float), frame["mean"].to_numpy(), frame["size"].to_numpy()
    )
    for total, resource, index in ((0.008 * 2200, 2200.0, 0), (0.8 * 17, 17.0, 1)):
        assert found.slope[index] * (resource - found.offset[index]) == pytest.approx(total, rel=0.04)
    assert math.exp(found.log_cap) == pytest.approx(11.0, rel=0.04)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_broadcast_and_gradients_reach_the_allocation(models: dict[str, SliceModel], kind: str) -> None:
    model = models[kind]
    allocation = torch.tensor([[1200.0, 12.0], [2500.0, 25.0]], requires_grad=True)
    traffic = torch.tensor([1.0, 2.5, 5.0])
    found = model.distribution(traffic, allocation.unsqueeze(1))
    assert found.means.shape[:2] == (2, 3)
    assert found.mean().shape == (2, 3)
    assert bool((found.stds > 0).all())
    assert torch.allclose(found.weights.sum(-1), torch.ones(2, 3), atol=1e-5)
    generator = torch.Generator().manual_seed(0)
    normal, uniform = torch.randn(64, 2, 3, generator=generator), torch.rand(64, 2, 3, generator=generator)
    found.sample(normal, uniform).mean().backward()
    assert allocation.grad is not None
    assert bool(torch.isfinite(allocation.grad).all())
    assert float(allocation.grad.abs().sum()) > 0


@pytest.mark.parametrize("kind", ["gaussian", "mdn"])
def test_an_allocation_between_the_cells_is_predicted(models: dict[str, SliceModel], kind: str) -> None:
    for users, cpu, bw in ((3.0, 1500.0, 35.0), (4.0, 3500.0, 15.0), (1.0, 3800.0, 38.0), (5.0, 2500.0, 18.0)):
        expected = min(0.008 * cpu / users, 0.8 * bw / users, 11.0)
        found = models[kind].distribution(users, torch.tensor([cpu, bw]))
        assert float(found.mean()) == pytest.approx(expected, rel=0.12)
        delay = models[kind].distribution(users, torch.tensor([cpu, bw]), qos=DELAY)
        assert float(delay.quantile(0.5)) == pytest.approx(0.01 + 0.05 / expected, rel=0.3)


def test_a_mixture_beats_a_normal_where_the_data_has_two_modes(tmp_path: Path) -> None:
    data = read_qos(written(tmp_path, table(bimodal=True).drop(columns="delay_s")))
    scores = {kind: evaluate(fit(data, kind=kind, seed=0, recipe=QUICK[kind]), data) for kind in ("gaussian", "mdn")}
    assert scores["mdn"]["nll"] < scores["gaussian"]["nll"] - 0.3


def test_the_same_seed_gives_the_same_model_and_another_seed_another(data: QosData) -> None:
    quick = dataclasses.replace(RECIPES["gaussian"], steps=20)
    point = torch.tensor([1500.0, 20.0])
    one, again, other = (
        fit(data, kind="gaussian", seed=seed, recipe=quick).distribution(3.0, point) for seed in (1, 1, 2)
    )
    assert torch.equal(one.means, again.means)
    assert torch.equal(one.stds, again.stds)
    assert not torch.equal(one.means, other.means)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_gives_the_same_model_back(models: dict[str, SliceModel], kind: str, tmp_path: Path) -> None:
    save(models[kind], tmp_path / "model.pt")
    again = load(tmp_path / "model.pt")
    point, users = torch.tensor([[1500.0, 20.0], [900.0, 8.0]]), torch.tensor([2.0, 4.0])
    for qos in (THROUGHPUT, DELAY):
        before, after = (one.distribution(users, point, qos=qos) for one in (models[kind], again))
        assert torch.equal(before.means, after.means)
        assert torch.equal(before.weights, after.weights)
    assert again.resources == models[kind].resources
    assert again.traffic_range == (1.0, 5.0)
    assert again.provenance["data"]["rows"] == 1500
    assert again.provenance["data"]["cells"] == 25
    assert again.in_hull(point).tolist() == [True, True]
    assert list(tmp_path.iterdir()) == [tmp_path / "model.pt"]


class _Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("executed",)


def test_loading_runs_no_code_and_says_what_is_wrong(
    models: dict[str, SliceModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trap = tmp_path / "trap.pt"
    trap.write_bytes(pickle.dumps(_Trap(), protocol=2))
    torch.save({"format": "twinbed.slice-model", "version": 1, "kind": _Trap()}, tmp_path / "trap2.pt")
    (tmp_path / "text.pt").write_text("cpu,bw\n")
    for name in ("trap.pt", "trap2.pt", "text.pt"):
        with pytest.raises(SliceModelError, match=f"{name}: not a slice model"):
            load(tmp_path / name)
    assert not (tmp_path / "executed").exists()
    torch.save({"format": "twinbed.slice-model", "version": 2}, tmp_path / "later.pt")
    with pytest.raises(SliceModelError, match="slice model version 2, this program reads 1"):
        load(tmp_path / "later.pt")
    save(models["paper"], tmp_path / "model.pt")
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    content["states"][0].pop("input_mean")
    torch.save(content, tmp_path / "damaged.pt")
    with pytest.raises(SliceModelError, match="damaged slice model"):
        load(tmp_path / "damaged.pt")
    with pytest.raises(SliceModelError, match="cannot be read: No such file"):
        load(tmp_path / "none.pt")
    with pytest.raises(SliceModelError, match="cannot be written"):
        save(models["paper"], tmp_path / "no" / "model.pt")


def test_extrapolation_is_marked(models: dict[str, SliceModel]) -> None:
    model = models["gaussian"]
    allocation = torch.tensor([[500.0, 5.0], [4000.0, 40.0], [1234.0, 17.0], [499.0, 20.0], [2000.0, 41.0]])
    assert model.in_hull(allocation).tolist() == [True, True, True, False, False]
    assert model.in_hull(allocation[2], torch.tensor([0.5, 1.0, 5.0, 5.5])).tolist() == [False, True, True, False]


def test_the_hull_is_convex_and_not_only_a_box() -> None:
    triangle = np.array([[100.0, 1.0], [900.0, 1.0], [100.0, 9.0]])
    halves = hull_of(triangle)

    def inside(x: float, y: float) -> bool:
        scaled = torch.tensor([(x - 100) / 800, (y - 1) / 8])
        return bool(((halves[:, :-1] @ scaled + halves[:, -1]) <= 1e-6).all())

    assert inside(300, 3)
    assert not inside(800, 8)
    line = hull_of(np.array([[100.0, 2.0], [900.0, 2.0]]))
    assert bool(((line[:, :-1] @ torch.tensor([0.5, 0.0]) + line[:, -1]) <= 1e-6).all())
    assert not bool(((line[:, :-1] @ torch.tensor([1.1, 0.0]) + line[:, -1]) <= 1e-6).all())


def test_slices_have_models_of_their_own(tmp_path: Path) -> None:
    slow = table(4).assign(slice="slow")
    slow["qos"] /= 4
    data = read_qos(written(tmp_path, pd.concat([table(4).assign(slice="fast"), slow])))
    model = fit(data, kind="gaussian", seed=0, recipe=QUICK["gaussian"])
    assert model.slices == ("fast", "slow")
    assert model.qos_names == (THROUGHPUT, DELAY)
    point = torch.tensor([2000.0, 20.0])
    fast, slow_mean = (float(model.distribution(3.0, point, slice_name=name).mean()) for name in ("fast", "slow"))
    assert fast / slow_mean == pytest.approx(4.0, rel=0.1)
    with pytest.raises(SliceModelError, match="name the slice; slices: fast, slow"):
        model.distribution(3.0, point)
    with pytest.raises(SliceModelError, match="no QoS 'jitter' of slice 'fast'"):
        model.distribution(3.0, point, slice_name="fast", qos="jitter")
    assert [(one["slice"], one["qos"]) for one in evaluate(model, data)["each"]] == [
        (name, qos) for name in ("fast", "slow") for qos in (THROUGHPUT, DELAY)
    ]


def test_scores_are_those_of_the_normal_that_made_the_data(models: dict[str, SliceModel], tmp_path: Path) -> None:
    """A model scored on its own draws is calibrated; on draws of twice the spread it is not."""
    model = models["gaussian"]
    rng = np.random.default_rng(0)
    frame = table(12)[["cpu", "bw", "n_users"]].astype(float)
    found = model.distribution(
        torch.tensor(frame.n_users.to_numpy(), dtype=torch.float32),
        torch.tensor(frame[["cpu", "bw"]].to_numpy(), dtype=torch.float32),
    )
    mean, std = found.mean().numpy(), found.std().numpy()
    draws = rng.standard_normal(len(frame))
    scores = {}
    for factor in (1.0, 2.0):
        frame["qos"] = np.maximum(mean + factor * std * draws, 0)
        scores[factor] = evaluate(model, read_qos(written(tmp_path, frame)))
    expected = float(np.mean(0.5 * draws**2 + np.log(std) + 0.5 * math.log(2 * math.pi)))
    assert scores[1.0]["nll"] == pytest.approx(expected, rel=1e-3)
    assert scores[1.0]["mse"] == pytest.approx(float(np.mean((std * draws) ** 2)), rel=1e-3)
    assert scores[1.0]["mae"] == pytest.approx(float(np.mean(np.abs(std * draws))), rel=1e-3)
    calibration = scores[1.0]["calibration"]
    assert calibration["coverage"] == pytest.approx({"50%": 0.5, "80%": 0.8, "95%": 0.95}, abs=0.03)
    assert calibration["pit"] == pytest.approx([0.1] * 10, abs=0.03)
    assert calibration["pit_distance"] < 0.04
    assert scores[2.0]["calibration"]["coverage"]["80%"] < 0.55
    assert scores[2.0]["calibration"]["pit_distance"] > 0.1


def test_validation_withholds_whole_cells(data: QosData) -> None:
    scores = validate(data, kind="gaussian", seed=0, recipe=dataclasses.replace(RECIPES["gaussian"], steps=60))
    assert set(scores) == {"by_cell", "by_row"}
    assert scores["by_cell"]["rows"] == 5 * 60  # a fifth of 25 allocations, 60 rows each
    assert scores["by_cell"]["extrapolated"] == 0.0


def test_a_model_of_other_resources_is_refused(models: dict[str, SliceModel], tmp_path: Path) -> None:
    other = read_qos(written(tmp_path, table(2).assign(prb_share=0.5)))
    with pytest.raises(SliceModelError, match=r"fitted on resources cpu_millicores, bandwidth_mbps; .* prb_share"):
        evaluate(models["gaussian"], other)


def test_a_qos_that_never_changes_is_refused(tmp_path: Path) -> None:
    constant = read_qos(written(tmp_path, table(2).drop(columns="delay_s").assign(qos=3.0)))
    with pytest.raises(SliceModelError, match="the QoS is 3 in every row: nothing to learn"):
        fit(constant, kind="gaussian", seed=0, recipe=Recipe(architecture={}, steps=1, rate=0.01))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns=["bw", "qos"]), "column bw, qos is missing; got columns cpu, n_users"),
        (lambda f: f.assign(qos=f.qos.where(f.index != 4)), "column qos, row 5: must be a number, got nan"),
        (
            lambda f: f.assign(cpu=f.cpu.astype(object).where(f.index != 2, "many")),
            "column cpu, row 3: must be a number",
        ),
        (lambda f: f.assign(qos=f.qos.where(f.index != 1, -1.5)), "column qos, row 2: must not be negative, got -1.5"),
        (lambda f: f.assign(n_users=0), "column n_users, row 1: must be positive, got 0"),
        (lambda f: f.assign(bw=float("inf")), "column bw, row 1: must be a number, got inf"),
        (lambda f: f[f.index < 0], "no rows"),
        (lambda f: f[(f.cpu == 500) & (f.bw == 5)], "1 cell only (cpu 500, bw 5), needs 2 or more"),
    ],
)
def test_bad_rows_are_named(change: object, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, change(table(2).drop(columns="delay_s")))  # type: ignore[operator]
    with pytest.raises(SliceModelError) as caught:
        read_qos(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_bad_files_are_named(tmp_path: Path) -> None:
    for name, content, message in (
        ("empty.csv", b"", "empty; needs columns cpu, bw, n_users, qos"),
        ("binary.csv", b"\xff\xfe\x00\x01", "not CSV"),
        ("text.parquet", b"cpu,bw\n", "not parquet"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(SliceModelError, match=message):
            read_qos(path)
    with pytest.raises(SliceModelError, match="cannot be read: No such file"):
        read_qos(tmp_path / "none.csv")


def test_parquet_is_read_like_csv(tmp_path: Path) -> None:
    frame = table(2)
    frame.to_parquet(tmp_path / "qos.parquet")
    one, other = read_qos(written(tmp_path, frame)), read_qos(tmp_path / "qos.parquet")
    for name in (THROUGHPUT, DELAY):
        np.testing.assert_allclose(one.slices["slice"].qos[name], other.slices["slice"].qos[name])


def test_the_surface_is_one_page_without_a_network(models: dict[str, SliceModel], tmp_path: Path) -> None:
    write_surface(models["mdn"], tmp_path / "surface.html")
    page = (tmp_path / "surface.html").read_text()
    assert "average over 1 to 5 users" in page
    assert "gNB CPU, millicores" in page
    assert '<script src="http' not in page
    with pytest.raises(SliceModelError, match="no QoS 'jitter'"):
        write_surface(models["mdn"], tmp_path / "other.html", qos="jitter")
    with pytest.raises(SliceModelError, match="cannot be written"):
        write_surface(models["mdn"], tmp_path / "no" / "surface.html")


@pytest.mark.parametrize(("kind", "nll", "mae"), [("gaussian", 0.24, 0.08), ("mdn", 0.0, 0.08)])
def test_cells_of_the_public_data_set_that_were_withheld_are_predicted(kind: str, nll: float, mae: float) -> None:
    """All rows with 2500 millicores or 30 Mbit/s withheld: how far the model is from the best normal of each cell."""
    folder = os.environ.get("TWIN_DATA")
    if not folder:
        pytest.skip("TWIN_DATA is not set: the public data set of MicroOpt is not at hand")
    data = read_qos(Path(folder) / "microopt_train_dataset.csv")
    rows = data.slices["slice"]
    held = (rows.allocation[:, 0] == 2500) | (rows.allocation[:, 1] == 30)
    model = fit(dataclasses.replace(data, slices={"slice": rows.rows(~held)}), kind=kind, seed=0)  # type: ignore[arg-type]
    test = rows.rows(held)
    scores = evaluate(model, dataclasses.replace(data, slices={"slice": test}))
    frame = pd.DataFrame(
        {"n": test.traffic, "c": test.allocation[:, 0], "b": test.allocation[:, 1], "q": test.qos[THROUGHPUT]}
    )
    cells = frame.groupby(["n", "c", "b"]).q
    best_nll = float((np.log(cells.transform("std", ddof=0)) + 0.5 + 0.5 * math.log(2 * math.pi)).mean())
    best_mae = float((frame.q - cells.transform("mean")).abs().mean())
    assert scores["nll"] <= best_nll + nll
    assert scores["mae"] <= best_mae + mae
    assert scores["extrapolated"] == 0.0
