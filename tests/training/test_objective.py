"""The objective against its literal formula, and what method and paper demand of its gradients."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")

from objective import paper_inputs
from torch import nn

from mixsiam_hub.training import losses, mixing
from mixsiam_hub.training import model as model_module
from mixsiam_hub.training.losses import coding_rate, discriminative_target, negative_cosine
from mixsiam_hub.training.mixing import draw_lam, draw_pair, mix
from mixsiam_hub.training.model import Inputs, MixSiam, Objective
from mixsiam_hub.training.streams import Purpose, stream


class TinyBackbone(nn.Module):
    """Stands in for a ResNet: one convolution and its BatchNorm, pooled."""

    dim = 6

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, self.dim, 3)
        self.norm = nn.BatchNorm2d(self.dim)
        self.passes = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return torch.relu(self.norm(self.conv(x))).mean(dim=(2, 3))


def make_model(**options: object) -> MixSiam:
    torch.manual_seed(0)
    return MixSiam(TinyBackbone(), projector_layers=2, projector_dim=16, predictor_dim=4, **options)


def make_batch(n: int = 8, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x1, x2 = torch.randn(2, n, 3, 8, 8, generator=generator)
    return x1, x2, torch.rand(n, 1, 1, 1, generator=generator)


def objective(model: MixSiam, x1: torch.Tensor, x2: torch.Tensor, lam: torch.Tensor) -> Objective:
    return model(paper_inputs(x1, x2, lam))


def gradients(model: MixSiam) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def literal_cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    dot = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    return dot / (sum(float(x) ** 2 for x in a) ** 0.5 * sum(float(y) ** 2 for y in b) ** 0.5)


@pytest.mark.parametrize("target", losses.TARGETS)
@pytest.mark.parametrize("w", [0.5, 1.0])
def test_forward_equals_the_literal_formula(target: str, w: float) -> None:
    model = make_model(w=w, target=target)
    x1, x2, lam = make_batch()
    with torch.no_grad():
        out = objective(model, x1, x2, lam)
        f = [model.projector(model.backbone(x)) for x in (x1, x2)]
        x_m = torch.stack([lam[n] * x1[n] + (1 - lam[n]) * x2[n] for n in range(len(x1))])
        p1, p2, p_m = (model.predictor(z) for z in (*f, model.projector(model.backbone(x_m))))
    z1, z2 = f
    n, d = z1.shape
    goal = torch.empty_like(z1)
    for i in range(n):
        for j in range(d):
            a, b = z1[i, j], z2[i, j]
            goal[i, j] = (a + b) / 2 if target == "mean" else (a if a > b else b)
    if target == "max-centred":
        for j in range(d):
            goal[:, j] -= sum(goal[i, j] for i in range(n)) / n
    sim = -sum(literal_cosine(p1[i], z2[i]) + literal_cosine(p2[i], z1[i]) for i in range(n)) / (2 * n)
    mixture = -sum(literal_cosine(p_m[i], goal[i]) for i in range(n)) / n
    assert float(out.loss_sim) == pytest.approx(sim, abs=1e-5)
    assert float(out.loss_mix) == pytest.approx(mixture, abs=1e-5)
    assert float(out.loss) == pytest.approx(sim + w * mixture, abs=1e-5)


@pytest.mark.parametrize("target", losses.TARGETS)
def test_targets_pass_no_gradient(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    x1, x2, lam = make_batch()
    model = make_model(target=target)
    seen: list[torch.Tensor] = []

    def record(p: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        seen.append(z.detach().clone())
        return negative_cosine(p, z)

    monkeypatch.setattr(model_module, "negative_cosine", record)
    objective(model, x1, x2, lam).loss.backward()
    expected = gradients(model)

    constants = iter(seen)
    monkeypatch.setattr(model_module, "negative_cosine", lambda p, z: negative_cosine(p, next(constants)))
    again = make_model(target=target)
    objective(again, x1, x2, lam).loss.backward()
    assert len(seen) == 3
    assert all(torch.equal(a, b) for a, b in zip(expected, gradients(again), strict=True))


def test_the_stop_gradient_test_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without stop-gradient the gradient differs, so the equality above is no accident."""
    x1, x2, lam = make_batch()
    model, leaky = make_model(), make_model()
    objective(model, x1, x2, lam).loss.backward()
    monkeypatch.setattr(torch.Tensor, "detach", lambda self: self)
    loss = objective(leaky, x1, x2, lam).loss
    monkeypatch.undo()
    loss.backward()
    assert not all(torch.allclose(a, b) for a, b in zip(gradients(model), gradients(leaky), strict=True))


def test_lam_one_gives_x1_and_lam_zero_gives_x2() -> None:
    x1, x2, lam = make_batch()
    assert torch.equal(mix(x1, x2, torch.ones_like(lam)), x1)
    assert torch.equal(mix(x1, x2, torch.zeros_like(lam)), x2)


def test_mixture_is_of_the_same_image() -> None:
    x1, x2, lam = make_batch()
    order = torch.randperm(len(x1), generator=torch.Generator().manual_seed(3))
    assert torch.equal(mix(x1, x2, lam)[order], mix(x1[order], x2[order], lam[order]))


def test_w_zero_is_simsiam() -> None:
    """Loss, gradient and weights after some steps equal a SimSiam written out here, and no third pass is paid."""
    mixsiam, simsiam = make_model(w=0.0), make_model(w=0.0)
    optimisers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (mixsiam, simsiam)]
    for step in range(4):
        x1, x2, lam = make_batch(seed=step)
        loss = objective(mixsiam, x1, x2, lam).loss
        z1, z2 = simsiam.projector(simsiam.backbone(x1)), simsiam.projector(simsiam.backbone(x2))
        p1, p2 = simsiam.predictor(z1), simsiam.predictor(z2)
        cosine = nn.functional.cosine_similarity
        reference = -(cosine(p1, z2.detach()).mean() + cosine(p2, z1.detach()).mean()) / 2
        assert loss.item() == reference.item()
        for optimiser, value in zip(optimisers, (loss, reference), strict=True):
            optimiser.zero_grad()
            value.backward()
        assert all(torch.equal(a, b) for a, b in zip(gradients(mixsiam), gradients(simsiam), strict=True))
        for optimiser in optimisers:
            optimiser.step()
    states = zip(mixsiam.state_dict().values(), simsiam.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)
    assert mixsiam.backbone.passes == 2 * 4


def test_running_statistics_are_of_views_alone() -> None:
    x1, x2, lam = make_batch()
    with_mixture, without = make_model(w=1.0), make_model(w=0.0)
    objective(with_mixture, x1, x2, lam)
    objective(without, x1, x2, lam)
    for (name, a), (_, b) in zip(with_mixture.named_buffers(), without.named_buffers(), strict=True):
        if not name.startswith("predictor"):
            assert torch.equal(a, b), name
    assert all(m.track_running_stats for m in with_mixture.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d))


def test_mixture_is_normalised_by_its_own_batch() -> None:
    model = make_model()
    x1, x2, lam = make_batch()
    seen: list[torch.Tensor] = []
    model.projector[-1].register_forward_hook(lambda _module, _args, out: seen.append(out.detach()))
    objective(model, x1, x2, lam)
    assert len(seen) == 3
    for z in seen:
        assert torch.allclose(z.mean(dim=0), torch.zeros(z.shape[1]), atol=1e-5)


def test_negative_cosine_is_float32_and_bounded() -> None:
    p = torch.randn(5, 7, dtype=torch.bfloat16)
    assert negative_cosine(p, p).dtype == torch.float32
    assert float(negative_cosine(p, p)) == pytest.approx(-1, abs=1e-6)
    assert float(negative_cosine(p, -p)) == pytest.approx(1, abs=1e-6)


def test_max_target_of_unrelated_views_is_biased_and_its_centred_form_is_not() -> None:
    z1, z2 = torch.randn(2, 4000, 64, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(64)
    cosine = nn.functional.cosine_similarity
    assert float(cosine(discriminative_target([z1, z2]), ones, dim=1).mean()) == pytest.approx(0.56, abs=0.02)
    assert abs(float(cosine(discriminative_target([z1, z2], "max-centred"), ones, dim=1).mean())) < 0.02


@pytest.mark.parametrize("mixture", mixing.MIXTURES)
def test_lam_has_its_shape_range_and_mean(mixture: str) -> None:
    draws = [draw_lam(mixture, 1.0, 16, stream(0, Purpose.MIXTURE, 0, i)) for i in range(400)]
    assert {d.shape for d in draws} == {(1, 1, 1) if mixture == "linear" else (1, 16, 16)}
    assert all(d.dtype == np.float32 and d.min() >= 0 and d.max() <= 1 for d in draws)
    assert 0.4 < np.mean([d.mean() for d in draws]) < 0.75
    assert len({d.tobytes() for d in draws}) > 300


def test_cutmix_pastes_one_box_of_x2() -> None:
    mask = torch.from_numpy(draw_lam("cutmix", 1.0, 16, stream(0, Purpose.MIXTURE, 0, 7)))[None]
    x1, x2 = torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16)
    pasted = mix(x1, x2, mask)[0, 0].bool()
    rows, columns = pasted.any(dim=1), pasted.any(dim=0)
    assert torch.equal(pasted, rows[:, None] & columns[None, :])
    for edge in (rows, columns):
        assert int((edge[1:] != edge[:-1]).sum()) <= 2


def test_heads_are_simsiams() -> None:
    model = copy.deepcopy(make_model())
    assert [type(layer) for layer in model.projector] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d]
    assert not model.projector[-1].affine
    assert [type(layer) for layer in model.predictor] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert model.predictor[-1].bias is not None


def many_views(n: int = 6) -> Inputs:
    """Three views, two local ones at half the size, and two mixtures of random pairs."""
    generator = torch.Generator().manual_seed(5)
    views = list(torch.randn(3, n, 3, 8, 8, generator=generator))
    local_views = list(torch.randn(2, n, 3, 4, 4, generator=generator))
    pairs = [
        torch.from_numpy(np.stack([draw_pair(3, np.random.default_rng(m * n + i)) for i in range(n)])) for m in (0, 1)
    ]
    return Inputs(views, local_views, list(torch.rand(2, n, 1, 1, 1, generator=generator)), pairs)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("predictors", ["shared", "own"])
def test_many_views_equal_the_literal_formula(predictors: str, momentum: float) -> None:
    """Each view is drawn to the mean of the others, local views to the mean of all, mixtures to the maximum of all."""
    model = make_model(w=0.5, predictors=predictors, momentum_target=momentum)
    if model.average is not None:
        with torch.no_grad():
            for parameter in model.average.parameters():
                parameter.mul_(1.1)
    inputs = many_views()
    with torch.no_grad():
        out = model(inputs)
        encode = nn.Sequential(model.backbone, model.projector)
        goal_encoder = encode if model.average is None else model.average
        targets = [goal_encoder(x) for x in inputs.views]
        aside = model.own_predictor if predictors == "own" else model.predictor
        n = len(inputs.views[0])
        terms = []
        for k, x in enumerate(inputs.views):
            p = model.predictor(encode(x))
            others = [targets[j] for j in range(3) if j != k]
            terms.append(-sum(literal_cosine(p[i], (others[0][i] + others[1][i]) / 2) for i in range(n)) / n)
        for x in inputs.local_views:
            p = aside(encode(x))
            terms.append(-sum(literal_cosine(p[i], sum(z[i] for z in targets) / 3) for i in range(n)) / n)
        mixtures = []
        for lam, pair in zip(inputs.lams, inputs.pairs, strict=True):
            rows = [lam[i] * inputs.views[pair[i, 0]][i] + (1 - lam[i]) * inputs.views[pair[i, 1]][i] for i in range(n)]
            p = aside(encode(torch.stack(rows)))
            goal = [torch.maximum(torch.maximum(targets[0][i], targets[1][i]), targets[2][i]) for i in range(n)]
            mixtures.append(-sum(literal_cosine(p[i], goal[i]) for i in range(n)) / n)
    sim, mixture = sum(terms) / 5, sum(mixtures) / 2
    assert float(out.loss_sim) == pytest.approx(sim, abs=1e-5)
    assert float(out.loss_mix) == pytest.approx(mixture, abs=1e-5)
    assert float(out.loss) == pytest.approx(sim + 0.5 * mixture, abs=1e-5)


def test_the_average_follows_the_encoder_and_learns_nothing() -> None:
    model = make_model(momentum_target=0.75)
    before = [p.clone() for p in model.average.parameters()]
    model(many_views()).loss.backward()
    assert all(p.grad is None for p in model.average.parameters())
    encoder = [*model.backbone.parameters(), *model.projector.parameters()]
    with torch.no_grad():
        for parameter in encoder:
            parameter.add_(1)
    model.update_average()
    for old, new, now in zip(before, model.average.parameters(), encoder, strict=True):
        assert torch.allclose(new, 0.75 * old + 0.25 * now)
    model.restart_average()
    encoder = nn.Sequential(model.backbone, model.projector).state_dict()
    assert any("running_mean" in name for name in encoder)
    for name, kept in model.average.state_dict().items():
        assert torch.equal(kept, encoder[name]), name


def test_pairs_of_many_views_differ_and_of_two_are_the_papers() -> None:
    rng = np.random.default_rng(0)
    drawn = {tuple(draw_pair(3, rng)) for _ in range(100)}
    assert drawn == {(0, 1), (0, 2), (1, 2)}
    assert draw_pair(2, rng).tolist() == [0, 1]


def test_coding_rate_is_its_formula_and_rises_as_projections_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(5, 16, generator=generator)
    unit = (z / z.norm(dim=1, keepdim=True)).double().numpy()
    of_dimensions = np.eye(16) + 16 / (5 * 0.2) * unit.T @ unit  # (D, D); ours is of the (N, N) products.
    expected = np.linalg.slogdet(of_dimensions)[1] / 2 / 5
    assert float(coding_rate(z)) == pytest.approx(expected, rel=1e-5)
    assert float(coding_rate(3 * z)) == pytest.approx(expected, rel=1e-5)
    assert float(coding_rate(z[:1].expand(5, 16))) < 0.5 * expected
    orthogonal = torch.eye(16)[:5]
    assert expected < float(coding_rate(orthogonal)) == pytest.approx(0.5 * math.log(1 + 16 / (5 * 0.2)), rel=1e-5)


def test_coding_rate_is_as_exact_under_bf16() -> None:
    alike = torch.ones(256, 2048) + 0.3 * torch.randn(256, 2048, generator=torch.Generator().manual_seed(0))
    expected = coding_rate(alike)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(coding_rate(alike), expected, rtol=0, atol=0)


def test_coding_rate_is_subtracted_from_the_loss_with_gradient() -> None:
    batch = make_batch()
    plain, spread = make_model(), make_model(coding_rate=0.25)
    before, after = objective(plain, *batch), objective(spread, *batch)
    zs = [spread.projector(spread.backbone(x)) for x in batch[:2]]
    rate = sum(coding_rate(z) for z in zs) / 2
    torch.testing.assert_close(after.loss, before.loss - 0.25 * rate)
    assert (after.loss_sim, after.loss_mix) == (before.loss_sim, before.loss_mix)
    before.loss.backward()
    after.loss.backward()
    differ = [not torch.equal(a, b) for a, b in zip(gradients(plain), gradients(spread), strict=True)]
    assert differ[0]  # The encoder's.
