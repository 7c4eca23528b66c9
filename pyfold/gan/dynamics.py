"""How two players move: the dynamics of a differentiable game, around any optimizers of torch.

A game is a function ``losses()`` that returns each player's loss at the parameters as they are; player i's parameters are
those of ``optimizers[i]``. A dynamic decides at which point and with which gradient each optimizer steps:

    dynamic = Extragradient([discriminator_optimizer, generator_optimizer], losses)
    for batch in batches:
        values = dynamic.step()

On ``V(x, y) = x y`` with plain gradient descent of step g, the distance to the equilibrium is multiplied by (exact values,
tested): simultaneous sqrt(1 + g^2); extragradient sqrt(1 - g^2 + g^4); proximal 1 / sqrt(1 + g^2); consensus and symplectic
sqrt((1 - g a)^2 + g^2); optimistic the larger root of l^2 - (1 - 2ig) l - ig, below one where g < 1/sqrt(3); unrolled by k
steps of rate r sqrt(1 - 2kgr + g^2), where kr < 1; alternating stays on x^2 + y^2 - g x y where g < 2.

Averages of the weights are torch's: ``torch.optim.swa_utils.AveragedModel(generator)``, updated after each step, is the mean
of the path, with ``multi_avg_fn=get_ema_multi_avg_fn(0.999)`` an exponential one. The mean ends an orbit (alternating), and
does not save what spirals outwards (simultaneous).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch

Losses = Callable[[], Sequence[torch.Tensor]]


class Dynamic:
    """Two or more players and their optimizers; :meth:`step` moves all of them once.

    Args:
        optimizers: one for each player, any of ``torch.optim``.
        losses: returns each player's loss, a scalar with a graph, in the order of the optimizers. It is called as often as
            the dynamic needs gradients, and must see the same batch within one step.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], losses: Losses):
        if len(optimizers) < 2:
            raise ValueError(f"optimizers must hold one for each of at least two players, got {len(optimizers)}")
        self.optimizers, self.losses = list(optimizers), losses
        self.parameters = [[p for group in o.param_groups for p in group["params"]] for o in optimizers]

    def step(self) -> list[torch.Tensor]:
        """Moves the players; returns the losses where the step began, detached."""
        raise NotImplementedError

    def _gradients(self, players: Sequence[int] | None = None, graph: bool = False) -> tuple[list, list[torch.Tensor]]:
        """Each player's gradient of its own loss, [player][parameter], and the losses, detached."""
        losses = self.losses()
        if len(losses) != len(self.optimizers):
            raise ValueError(f"losses() must return {len(self.optimizers)} losses, one for each player, got {len(losses)}")
        gradients: list[Any] = [None] * len(losses)
        for i in range(len(losses)) if players is None else players:
            gradients[i] = torch.autograd.grad(
                losses[i], self.parameters[i], create_graph=graph, retain_graph=True, materialize_grads=True
            )
        return gradients, [loss.detach() for loss in losses]

    def _move(self, player: int, gradient: Sequence[torch.Tensor]) -> None:
        for parameter, value in zip(self.parameters[player], gradient, strict=True):
            parameter.grad = value.detach()
        self.optimizers[player].step()
        self.optimizers[player].zero_grad(set_to_none=True)

    def _move_all(self, gradients: Sequence[Sequence[torch.Tensor]]) -> None:
        for player, gradient in enumerate(gradients):
            self._move(player, gradient)

    def _place(self) -> list[list[torch.Tensor]]:
        return [[p.detach().clone() for p in parameters] for parameters in self.parameters]

    @torch.no_grad()
    def _return_to(self, place: list[list[torch.Tensor]]) -> None:
        for parameters, values in zip(self.parameters, place, strict=True):
            for parameter, value in zip(parameters, values, strict=True):
                parameter.copy_(value)


class Simultaneous(Dynamic):
    """Every player steps along its gradient at the same point. On bilinear games it spirals outwards for every step size."""

    def step(self) -> list[torch.Tensor]:
        gradients, losses = self._gradients()
        self._move_all(gradients)
        return losses


class Alternating(Dynamic):
    """The players step one after the other, each seeing the moves before it.

    Args:
        steps: how many steps each player takes in its turn, as in ``(5, 1)`` for five of the discriminator.
        momentum: heavy-ball momentum added to what the optimizers do; negative values turn orbits into inward spirals
            (Gidel et al. 2019, theorem 6: -1/2), which torch's SGD refuses.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        losses: Losses,
        *,
        steps: Sequence[int] | None = None,
        momentum: float = 0.0,
    ):
        super().__init__(optimizers, losses)
        self.steps = [1] * len(optimizers) if steps is None else list(steps)
        if len(self.steps) != len(optimizers) or any(not isinstance(n, int) or n < 1 for n in self.steps):
            raise ValueError(f"steps must hold a positive int for each of the {len(optimizers)} players, got {steps}")
        if not -1 < momentum < 1:
            raise ValueError(f"momentum must be in (-1, 1), got {momentum}")
        self.momentum = momentum
        self._before = self._place() if momentum else None

    def step(self) -> list[torch.Tensor]:
        first = None
        for player, count in enumerate(self.steps):
            for _ in range(count):
                gradients, losses = self._gradients([player])
                first = losses if first is None else first
                here = [p.detach().clone() for p in self.parameters[player]] if self._before else None
                self._move(player, gradients[player])
                if self._before and here:
                    with torch.no_grad():
                        for parameter, now, before in zip(self.parameters[player], here, self._before[player], strict=True):
                            parameter.add_(now - before, alpha=self.momentum)
                    self._before[player] = here
        assert first is not None
        return first


def _copied_state(optimizer: torch.optim.Optimizer) -> dict[torch.Tensor, dict[str, Any]]:
    """The state of each parameter; the parameters themselves are its keys and are not copied."""
    copied = lambda v: v.clone() if isinstance(v, torch.Tensor) else copy.deepcopy(v)  # noqa: E731
    return {parameter: {k: copied(v) for k, v in state.items()} for parameter, state in optimizer.state.items()}


class Proximal(Dynamic):
    """The implicit step ``w' = w - eta grad(w')``, by fixed-point iteration from w.

    Each iteration goes back to w, with the optimizers' state, and steps along the gradient found where the one before ended.
    One iteration is :class:`Simultaneous`, two are :class:`Extragradient`; it converges where step size times the gradient's
    Lipschitz constant is below one.

    Args:
        iterations: gradient evaluations in each step.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], losses: Losses, *, iterations: int = 10):
        super().__init__(optimizers, losses)
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
            raise ValueError(f"iterations must be an int of at least 1, got {iterations!r}")
        self.iterations = iterations

    def step(self) -> list[torch.Tensor]:
        place = self._place()
        gradients, first = self._gradients()
        for _ in range(self.iterations - 1):
            states = [_copied_state(o) for o in self.optimizers]
            self._move_all(gradients)
            gradients, _ = self._gradients()
            self._return_to(place)
            for optimizer, state in zip(self.optimizers, states, strict=True):
                optimizer.state.clear()
                optimizer.state.update(state)
        self._move_all(gradients)
        return first


class Extragradient(Proximal):
    """Looks ahead by one step and moves from where it was, along the gradient found there (Korpelevich 1976).

    The optimizers' state follows the real steps only.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], losses: Losses):
        super().__init__(optimizers, losses, iterations=2)


class Optimistic(Dynamic):
    """``2 g_t - g_{t-1}`` in place of the gradient: extragradient with the gradient of the step before, at one evaluation a
    step (Popov 1980; Daskalakis et al. 2018, eq. 6). The first step is a plain one."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], losses: Losses):
        super().__init__(optimizers, losses)
        self._previous: list[list[torch.Tensor]] | None = None

    def step(self) -> list[torch.Tensor]:
        gradients, losses = self._gradients()
        # Copies: an optimizer may write into what it is given.
        present = [[g.detach().clone() for g in gradient] for gradient in gradients]
        previous = self._previous or present
        self._move_all(
            [[2 * g - before for g, before in zip(a, b, strict=True)] for a, b in zip(gradients, previous, strict=True)]
        )
        self._previous = present
        return losses


class _Adjusted(Dynamic):
    """The gradient plus ``strength`` times something made from it and the game's Jacobian J."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], losses: Losses, *, strength: float):
        super().__init__(optimizers, losses)
        if not strength >= 0:
            raise ValueError(f"strength must not be negative, got {strength}")
        self.strength = strength

    def _adjustment(self, field: list[torch.Tensor], where: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        raise NotImplementedError

    def step(self) -> list[torch.Tensor]:
        gradients, losses = self._gradients(graph=True)
        field = [g for gradient in gradients for g in gradient]
        where = [p for parameters in self.parameters for p in parameters]
        total = iter([g + self.strength * a for g, a in zip(field, self._adjustment(field, where), strict=True)])
        self._move_all([[next(total) for _ in parameters] for parameters in self.parameters])
        return losses


class Consensus(_Adjusted):
    """Adds ``strength grad(|field|^2 / 2) = strength J^T field``: all players want the field to vanish (Mescheder, Nowozin
    and Geiger 2017, eq. 6)."""

    def _adjustment(self, field: list[torch.Tensor], where: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        return jacobian_transposed(field, where, [g.detach() for g in field])


class Symplectic(_Adjusted):
    """Adds ``strength A^T field`` with A the antisymmetric part of J: it turns the field towards stable points and leaves a
    game without rotation alone (Balduzzi et al. 2018, eq. 5)."""

    def _adjustment(self, field: list[torch.Tensor], where: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        direction = [g.detach() for g in field]
        transposed = jacobian_transposed(field, where, direction, keep=True)
        forward = jacobian(field, where, direction)
        return [(t - f) / 2 for t, f in zip(transposed, forward, strict=True)]


class Unrolled(Dynamic):
    """One player, the leader, descends its loss as it will be after ``steps`` moves of the others, through which its gradient
    flows; the others take plain steps (Metz et al. 2017, eq. 8 to 11).

    The moves looked ahead are gradient descent at ``rate``. The derivative through them is exact and found by the adjoint
    recursion, with products of Hessian and vector at each move, so it takes the memory of one move and ``2 steps + 2``
    evaluations of the losses.

    Args:
        steps: moves looked ahead, at least 1.
        rate: their step size, positive. It need not be the optimizers': the ideal is a player that has finished.
        leader: who looks ahead; by default the last player, in the order of discriminator, generator.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        losses: Losses,
        *,
        steps: int,
        rate: float,
        leader: int = -1,
    ):
        super().__init__(optimizers, losses)
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps must be an int of at least 1, got {steps!r}")
        if not 0 < rate < float("inf"):
            raise ValueError(f"rate must be positive and finite, got {rate}")
        count = len(self.optimizers)
        if isinstance(leader, bool) or not isinstance(leader, int) or not -count <= leader < count:
            raise ValueError(f"leader must be the number of one of the {count} players, got {leader!r}")
        self.steps, self.rate, self.leader = steps, rate, leader % count
        self.followers = [i for i in range(count) if i != self.leader]

    def step(self) -> list[torch.Tensor]:
        gradients, first = self._gradients(self.followers)
        path = [self._place()]
        ahead = gradients
        for i in range(self.steps):
            with torch.no_grad():
                for player in self.followers:
                    for parameter, gradient in zip(self.parameters[player], ahead[player], strict=True):
                        parameter.sub_(gradient, alpha=self.rate)
            if i < self.steps - 1:
                path.append(self._place())
                ahead, _ = self._gradients(self.followers)
        own = self.parameters[self.leader]
        others = [p for player in self.followers for p in self.parameters[player]]
        total = torch.autograd.grad(self.losses()[self.leader], [*own, *others], materialize_grads=True)
        for place in reversed(path):
            self._return_to(place)
            ahead, _ = self._gradients(self.followers, graph=True)
            field = [g for player in self.followers for g in ahead[player]]
            change = jacobian_transposed(field, [*own, *others], total[len(own) :])
            total = [t - self.rate * c for t, c in zip(total, change, strict=True)]
        gradients[self.leader] = total[: len(own)]
        self._move_all(gradients)
        return first


def jacobian_transposed(
    field: Sequence[torch.Tensor], where: Sequence[torch.Tensor], direction: Sequence[torch.Tensor], keep: bool = False
) -> Sequence[torch.Tensor]:
    """``J^T v`` of a field with a graph, one backward pass; ``keep`` the graph for more."""
    pairs = [(f, d) for f, d in zip(field, direction, strict=True) if f.requires_grad]
    if not pairs:
        return [torch.zeros_like(w) for w in where]
    values, directions = zip(*pairs, strict=True)
    return torch.autograd.grad(values, where, directions, retain_graph=keep, materialize_grads=True)


def jacobian(
    field: Sequence[torch.Tensor], where: Sequence[torch.Tensor], direction: Sequence[torch.Tensor], keep: bool = False
) -> Sequence[torch.Tensor]:
    """``J v``: the derivative of ``J^T u`` in u, along v."""
    cotangents = [torch.zeros_like(f, requires_grad=True) for f in field]
    pairs = [(f, c) for f, c in zip(field, cotangents, strict=True) if f.requires_grad]
    if not pairs:
        return [torch.zeros_like(f) for f in field]
    values, weights = zip(*pairs, strict=True)
    products = torch.autograd.grad(values, where, weights, create_graph=True, materialize_grads=True)
    pairs = [(p, d) for p, d in zip(products, direction, strict=True) if p.requires_grad]
    if not pairs:
        return [torch.zeros_like(f) for f in field]
    values, directions = zip(*pairs, strict=True)
    return torch.autograd.grad(values, cotangents, directions, retain_graph=keep, materialize_grads=True)


#: The dynamics by name.
DYNAMICS: dict[str, type[Dynamic]] = {
    "simultaneous": Simultaneous,
    "alternating": Alternating,
    "extragradient": Extragradient,
    "optimistic": Optimistic,
    "proximal": Proximal,
    "consensus": Consensus,
    "symplectic": Symplectic,
    "unrolled": Unrolled,
}
