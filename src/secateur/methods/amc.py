"""AMC: an agent learns by trial how many channels each layer keeps, layer after layer, within the budget.

Source: He, Lin, Liu, Wang, Li, Han, "AMC: AutoML for Model Compression and Acceleration on Mobile Devices", ECCV 2018,
arXiv:1802.03494, and its published code, from which the hyper-parameters are.

Claim: reinforcement learning finds better widths for the layers of a network than rules made by hand, at the cost of
evaluations without training.

Equation: s[t] = (t, n, c, h, w, stride, k, cost[t], reduced, rest, a[t-1]), each in [0, 1], for a kernel n x c x k x k
that reads a map c x h x w;
a[t] = min(mu(s[t]) + noise, the most that leaves the budget within reach), the fraction of the c channels that stays;
R = -error (resource constrained), -error * log(MACs) or -error * log(params) (accuracy guaranteed), for all t alike;
Q(s[t], a[t]) is fitted to R - b + Q(s[t+1], mu(s[t+1])), b a moving average of R; mu maximises Q(s, mu(s)).

Cost: one pass over the calibration samples, O(rows * D^2) per layer with D = input channels * taps, and D^2 numbers of
memory each; then for each distinct candidate one solve per layer, O(D^3), and one evaluation of the cut network on the
validation samples; and one update of the agent's small networks for each group and episode.

Use it when there is time for some hundred evaluations and layers differ much in what they can lose. Its widths are
chosen on the data given: these have to be training data, and a test set that they never saw has to judge the result.

Where we differ, and why:

- One decision is about a group of coupled channels, at the first layer that reads it: layers that share a residual
  stream have one width and one set of channels, and depthwise convolutions follow what they read, as in the published
  code. ``residual`` leaves streams whole. Channels are ranked by the absolute weights of all layers that read them.
- The budget may count channels, parameters or bytes in place of MACs; cost[t], reduced and rest then do too. The bound
  is taken with exact costs and whole channels, so that no trajectory exceeds the budget even by rounding. What a
  trajectory removes beyond the budget is given back, in proportion, before it is measured.
- In the accuracy-guaranteed forms nothing bounds an action, as in the paper, but no more goes than the budget asks:
  there it is an upper limit, and usually less goes.
- The repair re-fits the bias too, or the running mean behind it, is pulled a little towards the weights as they were,
  and works on any kernel size. Its moments are taken once, so that a candidate costs solves and no pass over the data
  that it is fitted on.
- The agent is DDPG from stable-baselines3: its actor ends in tanh, mapped to [0, 1], which is the paper's sigmoid of
  twice the argument; replay holds the action before the bound, as in the published code. Warm-up actions are uniform
  in [0, 1]. Of all candidates the one with the highest reward is returned, of equal ones that with the lower loss.
- Widths seen before are not measured again.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MethodError
from ..extras import require
from ..graph.products import products, readers
from ..plan import Plan
from ..recovery.refit import Refit
from ..surgery.feasible import feasible
from ..train.progress import ProgressBar
from ..train.state_file import read_state, write_state
from ._amc_candidates import Candidates, Split, magnitudes
from ._amc_walk import Walk, layers_of
from ._problem import Decision, Problem
from ._scores import RESIDUAL, eligible
from ._settings import check_settings

if TYPE_CHECKING:
    from ._amc_environment import PruningEnvironment as PruningEnvironment

log = logging.getLogger(__name__)
REWARDS = ("error", "error_log_macs", "error_log_params")


def reward_of(error: float, cost: float | None = None) -> float:
    """Return the reward of a candidate; higher is better.

    Source: He et al. 2018, search protocols: R_err = -error, R_FLOPs = -error log(MACs), R_Param = -error log(params).

    Args:
        error: of the candidate, >= 0, e.g. 1 - accuracy.
        cost: its MACs or parameters, > 0, in the accuracy-guaranteed forms; None = R_err.

    >>> reward_of(0.25), round(reward_of(0.25, math.e**8), 6)
    (-0.25, -2.0)
    """
    return -error if cost is None else -error * math.log(cost)


@dataclass(frozen=True)
class Episode:
    """One candidate of a search.

    Attributes:
        widths: group -> channels that stay.
        metric: the task's, on the validation samples.
        loss: the task's, on the same.
        removed: fraction removed of what the budget counts.
        reward: what the agent was given.
    """

    widths: Mapping[str, int]
    metric: float
    loss: float
    removed: float
    reward: float


@dataclass(frozen=True)
class AmcSearch:
    """What a search tried and found.

    Attributes:
        decision: the best candidate.
        episodes: every candidate, in order.
        best: which of them it is.
        base_metric: the metric of the whole network on the validation samples.
    """

    decision: Decision
    episodes: tuple[Episode, ...]
    best: int
    base_metric: float


@dataclass(frozen=True)
class Amc:
    """Search widths with an agent, choose channels by magnitude, repair by least squares.

    Attributes:
        reward: "error" keeps to the budget and asks for accuracy; "error_log_macs" and "error_log_params" weigh
            accuracy against MACs or parameters, with the budget as upper limit of what goes.
        episodes: candidates to try; 800 in the published code.
        warmup_episodes: how many of them draw actions uniformly and learn nothing; 100 in the published code.
        keep_at_least: fraction of each group that always stays; 0.2 in the published code.
        residual: "prune" (the published code), "projection" or "skip": what happens to residual streams.
        validation_samples: labelled samples to measure candidates on, held out from the repair; 5000 of CIFAR-10's
            training set in the published code, 3000 of ImageNet's.
        calibration_samples: samples to fit the repair on; 3000 in the published code.
        rows_per_sample: positions of each of them; 10 in the published code.
        ridge: pull of the repair towards the weights as they were, relative to the inputs' second moment.
        noise: standard deviation of an action right after the warm-up.
        noise_decay: factor of the deviation from one episode to the next.
        actor_lr: learning rate of the policy.
        critic_lr: learning rate of Q.
        soft_update: how far the target networks move towards the others at each update.
        batch_size: transitions of an update.
        replay_episodes: how many episodes are remembered; 100 in the published code.
        baseline_decay: of the moving average of rewards; 0 follows each batch.
        hidden: width of the two hidden layers of actor and critic.
        state_file: where the search is written after every episode. If it is there, the search goes on from it.

    Raises:
        MethodError: a setting makes no sense.
    """

    reward: str = "error"
    episodes: int = 400
    warmup_episodes: int = 100
    keep_at_least: float = 0.2
    residual: str = "prune"
    validation_samples: int = 5000
    calibration_samples: int = 3000
    rows_per_sample: int = 10
    ridge: float = 1e-3
    noise: float = 0.5
    noise_decay: float = 0.95
    actor_lr: float = 1e-4
    critic_lr: float = 1e-3
    soft_update: float = 0.01
    batch_size: int = 64
    replay_episodes: int = 100
    baseline_decay: float = 0.5
    hidden: int = 300
    state_file: str | Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        counts = [f.name for f in fields(self) if type(f.default) is int]
        whole = {
            name: (type(getattr(self, name)) is int and getattr(self, name) >= 1, "a whole number >= 1")
            for name in counts
            if name != "warmup_episodes"
        }
        is_below = type(self.warmup_episodes) is int and 0 <= self.warmup_episodes < self.episodes
        positive = ("actor_lr", "critic_lr")
        up_to_one = ("keep_at_least", "noise_decay", "soft_update")
        check_settings(
            self,
            {
                "reward": (self.reward in REWARDS, f"one of {', '.join(REWARDS)}"),
                "residual": (self.residual in RESIDUAL, f"one of {', '.join(RESIDUAL)}"),
                **whole,
                "warmup_episodes": (is_below, f"a whole number >= 0 and below episodes={self.episodes}"),
                **{name: (0 < getattr(self, name) < math.inf, "a number above 0") for name in positive},
                **{name: (0 < getattr(self, name) <= 1, "a fraction in (0, 1]") for name in up_to_one},
                "ridge": (0 <= self.ridge < math.inf, "a number >= 0"),
                "noise": (0 <= self.noise < math.inf, "a number >= 0"),
                "baseline_decay": (0 <= self.baseline_decay < 1, "a fraction in [0, 1)"),
            },
        )

    def decide(self, problem: Problem) -> Decision:
        """Search, and return the best candidate; see `search`."""
        if problem.budget.remove == 0:
            names = eligible(problem, self.residual)
            problem.check_weights(names)
            return Decision(Plan.from_removed({name: [] for name in names}, problem.graph.widths))
        return self.search(problem).decision

    def search(self, problem: Problem, *, progress: bool | None = None) -> AmcSearch:
        """Search widths for a problem, whose budget removes something.

        Args:
            problem: with labelled training batches; part of them fits the repair, the others choose.
            progress: True or False to force the progress bar; None = where there is a terminal.

        Raises:
            BudgetError: the budget is out of reach.
            MethodError: no data, labels or task, fewer than two batches, values that are not finite, nothing that
                reads a channel, or a state file of another search.
            MissingExtra: the extra `rl` is not installed.
            NothingToPrune: no group is free to go.
            TrainingError: the state file cannot be read or written.
        """
        _require_rl()
        from ._amc_agent import AgentSettings, explore

        run = _Run.of(self, problem)
        own = {f.name for f in fields(AgentSettings)}
        settings = AgentSettings(**{name: value for name, value in asdict(self).items() if name in own})
        saved = run.load_()
        with ProgressBar("searching widths", self.episodes, visible=progress) as bar:
            bar.advance(len(run.episodes))
            environment = run.environment(bar)
            explore(environment, len(run.walk), settings, seed=problem.seed, saved=saved, save=run.save)
        return run.result()

    def environment(self, problem: Problem) -> PruningEnvironment:
        """Return the environment that is searched, for an agent of your own.

        Raises:
            Exception: as `search`.
        """
        _require_rl()
        return _Run.of(self, problem).environment()


class _Run:
    """One search: the walk, the candidates and what was tried so far."""

    def __init__(self, method: Amc, problem: Problem, walk: Walk, candidates: Candidates) -> None:
        self.method, self.problem, self.walk, self.candidates = method, problem, walk, candidates
        self.episodes: list[Episode] = []
        self._known: dict[tuple[int, ...], Episode] = {}

    @classmethod
    def of(cls, method: Amc, problem: Problem) -> _Run:
        names = eligible(problem, method.residual)
        problem.check_weights(names)
        movable = feasible(problem.model, problem.graph).groups
        every = products(problem.graph)
        reading = {name: readers(problem.graph, problem.graph.groups[name], every) for name in names if name in movable}
        if left := [name for name in names if not reading.get(name)]:
            log.warning("amc leaves whole what no layer reads or the model's code cannot narrow: %s", ", ".join(left))
        order = sorted(((n, r) for n, r in reading.items() if r), key=lambda item: item[1][0].op.index)
        if not order:
            raise MethodError(
                f"amc decides how many of its input channels a layer keeps; no layer reads any of {names[:4]} by a "
                "weight of its own. Use a method that scores weights, e.g. l1_filter."
            )
        layers, is_bounded = layers_of(problem, order), method.reward == "error"
        walk = Walk(problem, layers, keep_at_least=method.keep_at_least, is_bounded=is_bounded)
        split = Split.of(problem, method.calibration_samples, method.validation_samples)
        candidates = Candidates(
            problem,
            split,
            scores={name: magnitudes(problem, name, own) for name, own in order},
            reading={product.site: product for _, own in order for product in own}.values(),
            rows_per_sample=method.rows_per_sample,
            how=Refit(ridge=method.ridge),
        )
        return cls(method, problem, walk, candidates)

    def environment(self, bar: ProgressBar | None = None) -> PruningEnvironment:
        from ._amc_environment import PruningEnvironment

        def reward(widths: tuple[int, ...]) -> float:
            episode = self.tried(widths)
            self.episodes.append(episode)
            log.info("candidate %d: reward %.5f, %s", len(self.episodes), episode.reward, dict(episode.widths))
            if bar is not None:
                bar.advance()
            return episode.reward

        return PruningEnvironment(self.walk, reward)

    def tried(self, widths: tuple[int, ...]) -> Episode:
        """Measure a candidate, once."""
        if widths not in self._known:
            named = self.walk.named(widths)
            plan = self.candidates.plan(named)
            metric, loss, _ = self.candidates.measured(plan)
            removed = 1 - self.walk.cost(widths) / self.walk.whole
            self._known[widths] = Episode(named, metric, loss, removed, self._reward(metric, plan))
        return self._known[widths]

    def _reward(self, metric: float, plan: Plan) -> float:
        task = self.problem.task
        error = 1 - metric if task is not None and task.higher_is_better else metric
        name = task.name if task is not None else "metric"
        if not math.isfinite(error):
            raise MethodError(f"amc: the {name} of a candidate on the held-out samples is {metric}: check the data.")
        if self.method.reward == "error":
            return reward_of(error)
        if error < 0:
            raise MethodError(
                f"reward={self.method.reward!r} multiplies an error by a logarithm, and {name}={metric} leaves none: "
                "use a metric in [0, 1] where higher is better, or >= 0 where lower is."
            )
        cost = self.problem.graph.costs(plan).of(self.method.reward.removeprefix("error_log_"))
        return reward_of(error, cost)

    def result(self) -> AmcSearch:
        best = min(range(len(self.episodes)), key=lambda k: (-self.episodes[k].reward, self.episodes[k].loss))
        plan = self.candidates.plan(self.episodes[best].widths)
        model = self.candidates.repaired(plan)
        decision = Decision(plan, model, self.candidates.scores, repair="none")
        return AmcSearch(decision, tuple(self.episodes), best, self.candidates.base.metric)

    # -- what is written down --------------------------------------------------------------------------------------

    def save(self, agent: Mapping[str, Any]) -> None:
        """Write the search down, between two episodes."""
        if self.method.state_file is None:
            return
        tried = [[list(e.widths.values()), e.metric, e.loss, e.removed, e.reward] for e in self.episodes]
        base = [float(value) for value in self.candidates.base]
        state = {"search": self._digest(), "base": base, "episodes": tried, "agent": dict(agent)}
        path = Path(self.method.state_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_state(path, state)

    def load_(self) -> Mapping[str, Any] | None:
        """Take up what was written down, and return the agent's part; None if there is nothing."""
        path = None if self.method.state_file is None else Path(self.method.state_file)
        if path is None or not path.exists():
            return None
        state = read_state(path)
        is_same = isinstance(state, dict) and state.get("search") == self._digest()
        if not is_same or not all(
            math.isclose(one, other, rel_tol=1e-3)
            for one, other in zip(state["base"], self.candidates.base, strict=True)
        ):
            raise MethodError(
                f"{path} is of another search: another model, data, budget, seed or setting. Name another file, or "
                "delete it to start anew."
            )
        for widths, *numbers in state["episodes"]:
            episode = Episode(self.walk.named(widths), *numbers)
            self.episodes.append(episode)
            self._known[tuple(widths)] = episode
        agent: Mapping[str, Any] = state["agent"]
        return agent

    def _digest(self) -> str:
        """Tell searches apart by their settings and by what is searched."""
        problem, walk = self.problem, self.walk
        settings = replace(self.method, state_file=None)
        words = [repr(settings), str(problem.budget), repr(problem.limits), str(problem.seed)]
        words += [f"{layer} {choices.tolist()}" for layer, choices in zip(walk.layers, walk.choices, strict=True)]
        return hashlib.sha256("\n".join(words).encode()).hexdigest()


def _require_rl() -> None:
    for module in ("gymnasium", "stable_baselines3"):
        require(module, extra="rl", purpose="amc")


def __getattr__(name: str) -> Any:
    """Import the environment when it is asked for, since it needs the extra `rl`."""
    if name == "PruningEnvironment":
        _require_rl()
        from ._amc_environment import PruningEnvironment

        return PruningEnvironment
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
