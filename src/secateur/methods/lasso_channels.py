"""LASSO channel pruning: a sparse weighting of channels that rebuilds the next layer's outputs, then least squares.

Source: He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, arXiv:1707.06168.

Claim: choosing input channels by LASSO regression on a layer's outputs and rebuilding these by least squares loses
little accuracy, layer by layer, without training in between.

Equation: min over beta, W' of 1/(2N) ||Y - sum_i beta_i X_i W_i^T||^2 + lambda ||beta||_1 with at most c' nonzero
beta_i (1). X_i are the inputs of channel i from the pruned network so far, W_i its weights, Y the original outputs
without bias. beta by LASSO for fixed W, with lambda grown until c' channels are left; then W' by least squares for
fixed beta.

Cost: for each group, two passes over the data up to the layers that read it (moments for the choice and for the
re-fit), O(rows * D^2) with D = input channels * taps; the whole LASSO path from the C x C Gram matrix; one D_S x D_S
solve.

Use it when there is data without labels and no time to train: it re-fits by itself, and later layers make up for
earlier ones. Under the same re-fit its choice of channels was no better than that of a norm where half of the MACs
went, and better by five points and more where 70 % went (below).

Where we differ, and why:

- The exact number of channels comes from the whole path of solutions (LARS on the Gram matrix of the channels'
  contributions), where the authors' code doubles and bisects lambda and accepts up to 10 % more channels.
- One round (choice, then least squares) as in the authors' code; `rounds` above 1 alternates as in section 3.1, each
  round with a part of the channels that go, on the weights that the round before left.
- Channels that the path never takes up, since they add nothing (dead ones, copies of others), are told apart by their
  energy, then by index.
- Where a reader's result is added to a shortcut, its target makes up for what the shortcut lost (section 3.3).
- ``sampler=True`` puts the paper's channel sampler (section 3.3), a `ChannelSelect`, in front of the first layer of
  each residual branch: its input channels are chosen and its weights re-fitted like any other's, and the stream stays
  whole. The same goes for branches that normalise first and for the linear layers of transformers. What projects a
  shortcut and the classifier read their streams whole. The paper samples in residual networks; here it is off unless
  asked for, since to gather channels costs memory traffic in every block that no count of MACs shows, and since without
  it all methods are compared on the same layers.
- Several layers that read one group are weighted by the energy of their outputs; each is then re-fitted.
- A small ridge pulls the re-fit towards the weights as they were, so that directions without data keep them.
- The paper's shares (shallow stages pruned harder, 1 : 1.5, conv5 whole) are for VGG-16; give them as `allocation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import MethodError
from ..graph.products import Product
from ..recovery.moments import Sampling
from ..recovery.refit import Refit, Refitting
from ..surgery.selection import with_selections
from ._lasso import lasso_support
from ._layerwise import LayerWise, of_all_readers
from ._problem import Decision, Problem
from ._scores import Allocation, counts_for, eligible


@dataclass(frozen=True)
class LassoChannels:
    """Remove the input channels that a LASSO regression on a layer's outputs gives no weight, and re-fit.

    Attributes:
        rounds: 1 chooses, then re-fits; more alternate between the two with a part of the channels in each.
        ridge: of the re-fit, relative to the inputs' second moment.
        rows_per_sample: positions drawn from each sample; the paper has 10. None = all.
        max_samples: samples that are read; the paper has 5000. None = all.
        restores_sums: targets behind a shortcut make up for what it lost (section 3.3).
        allocation: "uniform", "sensitivity" or {module path: relative fraction}. The choice is made layer by layer, so
            that no ranking over all layers exists.
        residual: "skip" (the paper), "projection" or "prune": what happens to residual streams.
        sampler: with ``residual="skip"``, let the first layers of residual branches read some channels of their stream
            only (section 3.3).

    Raises:
        MethodError: a setting makes no sense.
    """

    rounds: int = 1
    ridge: float = 1e-4
    rows_per_sample: int | None = 10
    max_samples: int | None = 5000
    restores_sums: bool = True
    allocation: Allocation = "uniform"
    residual: str = "skip"
    sampler: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.rounds, bool) or not isinstance(self.rounds, int) or self.rounds < 1:
            raise MethodError(f"rounds={self.rounds!r}: expected a whole number >= 1.")
        self._refit(0)

    def _refit(self, seed: int) -> Refit:
        sampling = Sampling(self.rows_per_sample, self.max_samples, seed)
        return Refit(self.ridge, sampling=sampling, restores_sums=self.restores_sums)

    def prepare(self, problem: Problem) -> Problem:
        """Pose the problem on a graph with a channel sampler in front of the first layer of each residual branch.

        `prune` and `prune_iteratively` do. A problem without stays one without.
        """
        if not self.sampler or self.residual != "skip":
            return problem
        return replace(problem, graph=with_selections(problem.model, problem.graph, before_layers=True))

    def decide(self, problem: Problem) -> Decision:
        """Choose and re-fit, group by group, front to back.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: no data, weights or activations that are not finite, or nothing that reads a group.
            NothingToPrune: no group is free to go.
            TrainingError: the data give no batch.
        """
        names = eligible(problem, self.residual)
        problem.check_weights(names)
        how = self._refit(problem.seed)
        walk = LayerWise(problem, "lasso_channels", how.sampling, restores_sums=self.restores_sums)
        groups = walk.groups(names)
        kept = counts_for(problem, [name for name, _ in groups], self.allocation)
        if problem.budget.remove == 0:
            return Decision(walk.plan)
        for name, reading in groups:
            width = problem.graph.groups[name].width
            for number in range(1, self.rounds + 1):
                stay = width - (width - kept[name]) * number // self.rounds
                if stay < width - len(walk.removed.get(name, ())):
                    self._round_(walk, name, reading, stay, how)
        return Decision(walk.plan, walk.work, repair="none")

    def _round_(self, walk: LayerWise, name: str, reading: Sequence[Product], stay: int, how: Refit) -> None:
        width = walk.problem.graph.groups[name].width
        left = [c for c in range(width) if c not in set(walk.removed.get(name, ()))]
        whole = of_all_readers(walk.moments(name, reading))
        chosen, _ = lasso_support(whole.gram[left][:, left], whole.target[left], stay)
        walk.remove_(name, sorted(set(range(width)) - {left[k] for k in chosen}))
        problem = walk.problem
        assert problem.data is not None
        assert problem.task is not None
        run = Refitting(walk.work, problem.graph, walk.plan, problem.data, problem.task, how, problem.model)
        sites = {product.site for product in reading}
        for uses, view in run.consumers():
            if uses[0].site in sites and run.fits(uses[0]):
                run.refit_(uses, view)
