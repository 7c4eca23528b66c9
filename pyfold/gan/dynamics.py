"""How two players move: the dynamics of a differentiable game, around any optimizers of torch.

A game is a function ``losses()`` that returns each player's loss at the parameters as they are; player i's parameters are
those of ``optimizers[i]``. A dynamic decides at which point and with which gradient each optimizer steps:

    dynamic = Extragradient([discriminator_optimizer, generator_optimizer], losses)
    for batch in batches:
        values = dynamic.step()

Where the players share little, one function for each, ``[discriminator_loss, generator_loss]``, saves work: a dynamic calls
those whose gradient it takes. What a dynamic remembers between steps lies in its optimizers' state, so a checkpoint of the
optimizers is one of the game.

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

Losses = Callable[[], Sequence[torch.Tensor]] | Sequence[Callable[[], torch.Tensor]]


class Dynamic:
    """Two or more players and their optimizers; :meth:`step` moves all of them once.

    Args:
        optimizers: one for each player, any of ``torch.optim``.
        losses: returns each player's loss, a scalar with a graph, in the order of the optimizers; or a function for each
            player. Called as often as the dynamic needs gradients, it must see the same batch within one step.

    Attributes:
        combine: called with each player's gradient before it is used, to average it over processes in place; by default None.
            For the dynamics that are not ``mixed``.
        mixed: whether it differentiates one player's gradient by another's parameters, so that each loss needs a graph to all.
    """

    mixed = False

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], losses: Losses):
        if len(optimizers) < 2:
            raise ValueError(f"optimizers must hold one for each of at least two players, got {len(optimizers)}")
        self.optimizers, self.losses = list(optimizers), losses
        self.parameters = [[p for group in o.param_groups for p in group["params"]] for o in optimizers]
        self.combine: Callable[[Sequence[torch.Tensor]], None] | None = None

    def step(self) -> list[torch.Tensor]:
        """Moves the players; returns each one's loss, detached: where the step began, or with a function for each player where
        its gradient was first taken."""
        raise NotImplementedError

    def _evaluate(self, players: Sequence[int]) -> list[Any]:
        """The losses of at least these players; None for others that were not evaluated."""
        losses: Sequence[Any] = self.losses() if callable(self.losses) else self.losses
        if len(losses) != len(self.optimizers):
            raise ValueError(f"losses must give {len(self.optimizers)} losses, one for each player, got {len(losses)}")
        if callable(self.losses):
            return list(losses)
        return [loss() if i in players else None for i, loss in enumerate(losses)]

    def _gradients(self, players: Sequence[int] | None = None, graph: bool = False) -> tuple[list[Any], list[Any]]:
        """Each player's gradient of its own loss, [player][parameter], and the losses, detached."""
        players = range(len(self.optimizers)) if players is None else players
        losses = self._evaluate(players)
        gradients: list[Any] = [None] * len(losses)
        for i in players:
            gradients[i] = torch.autograd.grad(
                losses[i], self.parameters[i], create_graph=graph, retain_graph=True, materialize_grads=True
            )
            if self.combine and not graph:
                self.combine(gradients[i])
        return gradients, [None if loss is None else loss.detach() for loss in losses]

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

    def step(self) -> list[torch.Tensor]:
        first: list[Any] = [None] * len(self.optimizers)
        for player, count in enumerate(self.steps):
            for _ in range(count):
                gradients, losses = self._gradients([player])
                first = [b if a is None else a for a, b in zip(first, losses, strict=True)]
                here = [p.detach().clone() for p in self.parameters[player]] if self.momentum else []
                self._move(player, gradients[player])
                state = self.optimizers[player].state
                for parameter, now in zip(self.parameters[player], here, strict=bool(here)):
                    with torch.no_grad():
                        parameter.add_(now - state[parameter].get("place_before", now), alpha=self.momentum)
                    state[parameter]["place_before"] = now
        return first


def _copied_state(optimizer: torch.optim.Optimizer) -> dict[torch.Tensor, dict[str, Any]]:
    """The state of each parameter; the parameters themselves are its keys and are not copied."""

    def copied(value: Any) -> Any:
        return value.clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value)

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

    def step(self) -> list[torch.Tensor]:
        gradients, losses = self._gradients()
        # Copies: what made a gradient may write over it.
        present = [[g.detach().clone() for g in gradient] for gradient in gradients]
        for player, (optimizer, parameters) in enumerate(zip(self.optimizers, self.parameters, strict=True)):
            state = optimizer.state
            # Not state[p], which would make an entry, and an optimizer sets up its own only where there is none.
            before = [state.get(p, {}).get("gradient_before", g) for p, g in zip(parameters, gradients[player], strict=True)]
            self._move(player, [2 * g - b for g, b in zip(gradients[player], before, strict=True)])
            for parameter, gradient in zip(parameters, present[player], strict=True):
                state[parameter]["gradient_before"] = gradient
        return losses


class _Adjusted(Dynamic):
    """The gradient plus ``strength`` times something made from it and the game's Jacobian J."""

    mixed = True

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

    The moves looked ahead are those of the others' own optimizers, with the state that they have by now, or with ``rate`` plain
    gradient descent. The derivative through them is exact, in parameters and optimizers' state, and found by the adjoint
    recursion, with products of Hessian and vector at each move, so no graph spans more than one; ``2 steps + 2`` evaluations of
    the losses, and a copy of the others' parameters and state for each move.

    The leader's loss must be all that depends on the others: for a generator the whole value function, ``E log D(x)`` included
    (eq. 10), which is minus the loss of the discriminator. What has no derivative in the generator has one through the moves.

    Args:
        steps: moves looked ahead, at least 1.
        rate: step size of plain descent in place of the optimizers' moves, positive; by default the optimizers move.
        leader: who looks ahead; by default the last player, in the order of discriminator, generator.

    Raises:
        ValueError: an argument out of range.
        TypeError: an optimizer that torch cannot differentiate (one without ``differentiable``, as LBFGS), without ``rate``.
    """

    mixed = True

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        losses: Losses,
        *,
        steps: int,
        rate: float | None = None,
        leader: int = -1,
    ):
        super().__init__(optimizers, losses)
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps must be an int of at least 1, got {steps!r}")
        if rate is not None and not 0 < rate < float("inf"):
            raise ValueError(f"rate must be positive and finite, or None for the optimizers' own moves, got {rate}")
        count = len(self.optimizers)
        if isinstance(leader, bool) or not isinstance(leader, int) or not -count <= leader < count:
            raise ValueError(f"leader must be the number of one of the {count} players, got {leader!r}")
        self.steps, self.rate, self.leader = steps, rate, leader % count
        self.followers = [i for i in range(count) if i != self.leader]
        for player in self.followers:
            if rate is None and "differentiable" not in self.optimizers[player].defaults:
                kind = type(self.optimizers[player]).__name__
                raise TypeError(f"optimizers[{player}] must be one that torch can differentiate, got {kind}; or give rate")

    def step(self) -> list[torch.Tensor]:
        movers = {i: self._mover(i) for i in self.followers}
        place = self._place()
        states = {i: _copied_state(self.optimizers[i]) for i in self.followers}
        gradients, first = self._gradients(self.followers)
        path = []
        ahead = gradients
        for i in range(self.steps):
            path.append((self._place(), {player: _copied_state(mover) for player, mover in movers.items()}))
            for player, mover in movers.items():
                for parameter, gradient in zip(self.parameters[player], ahead[player], strict=True):
                    parameter.grad = gradient.detach()
                mover.step()
                mover.zero_grad(set_to_none=True)
            if i < self.steps - 1:
                ahead, _ = self._gradients(self.followers)
        own = self.parameters[self.leader]
        others = [p for player in self.followers for p in self.parameters[player]]
        loss = self._evaluate([self.leader])[self.leader]
        first[self.leader] = loss.detach() if first[self.leader] is None else first[self.leader]
        slopes = torch.autograd.grad(loss, [*own, *others], materialize_grads=True)
        total, pull = list(slopes[: len(own)]), _Pull(others, slopes[len(own) :])
        for there, state in reversed(path):
            self._return_to(there)
            ahead, _ = self._gradients(self.followers, graph=True)
            back = [pull.through(movers[i], self.parameters[i], ahead[i], state[i]) for i in self.followers]
            field = [g for player in self.followers for g in ahead[player]]
            change = jacobian_transposed(field, [*own, *others], [d for part in back for d in part])
            total = [t + c for t, c in zip(total, change[: len(own)], strict=True)]
            pull.add(others, change[len(own) :])
        self._return_to(place)
        for player, kept in states.items():
            self.optimizers[player].state.clear()
            self.optimizers[player].state.update(kept)
        gradients[self.leader] = total
        self._move_all(gradients)
        return first

    def _mover(self, player: int) -> torch.optim.Optimizer:
        """Who moves a follower ahead: its optimizer, or plain descent."""
        return self.optimizers[player] if self.rate is None else torch.optim.SGD(self.parameters[player], lr=self.rate)


class _Pull:
    """The derivative of the leader's loss in the others' parameters and their optimizers' state, carried back move by move."""

    def __init__(self, parameters: Sequence[torch.Tensor], slopes: Sequence[torch.Tensor]):
        self.on_place = dict(zip(parameters, slopes, strict=True))
        self.on_state: dict[tuple[torch.Tensor, str], torch.Tensor] = {}

    def add(self, parameters: Sequence[torch.Tensor], slopes: Sequence[torch.Tensor]) -> None:
        for parameter, slope in zip(parameters, slopes, strict=True):
            self.on_place[parameter] = self.on_place[parameter] + slope

    def through(
        self,
        mover: torch.optim.Optimizer,
        parameters: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor],
        state: dict[torch.Tensor, dict[str, Any]],
    ) -> list[torch.Tensor]:
        """Goes back over one move of ``mover`` from here, where it had ``state``: returns the derivative in the gradients that
        it was given; those in the place and the state before the move stay in this object."""
        places = {p: p.detach().clone().requires_grad_() for p in parameters}
        slots = {(p, k): v.clone().requires_grad_() for p, k, v in _differentiable_slots(state)}
        # Optimizers divide by roots of sums of squares, which have no derivative where every gradient was exactly 0.
        least = [torch.where(g == 0, 1e-17, g.detach()).requires_grad_() for g in gradients]
        # Copies, for the optimizer writes over what it moves.
        moved = {p: leaf.clone() for p, leaf in places.items()}
        groups = []
        for group in mover.param_groups:
            options = {
                k: v for k, v in group.items() if k not in ("foreach", "fused", "capturable", "differentiable", "params")
            }
            groups.append({**options, "params": [moved[p] for p in group["params"]], "differentiable": True})
        kind: Any = type(mover)
        twin = kind(groups, differentiable=True)
        for p, kept in state.items():
            # The count of steps is float32 in an optimizer, and the bias corrections made from it would be as well.
            others = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in kept.items()}
            twin.state[moved[p]] = {k: slots[p, k].clone() if (p, k) in slots else v for k, v in others.items()}
        for p, gradient in zip(parameters, least, strict=True):
            moved[p].grad = gradient
        twin.step()
        outputs = [(moved[p], self.on_place[p]) for p in parameters]
        outputs += [(twin.state[moved[p]][k], slope) for (p, k), slope in self.on_state.items() if p in moved]
        outputs = [(value, slope) for value, slope in outputs if value.requires_grad]
        inputs = [*places.values(), *slots.values(), *least]
        values, slopes = zip(*outputs, strict=True)
        back = iter(torch.autograd.grad(values, inputs, slopes, materialize_grads=True))
        for p in parameters:
            self.on_place[p] = next(back)
        self.on_state = {k: v for k, v in self.on_state.items() if k[0] not in moved} | {k: next(back) for k in slots}
        return list(back)


def _differentiable_slots(state: dict[torch.Tensor, dict[str, Any]]) -> list[tuple[torch.Tensor, str, torch.Tensor]]:
    """What an optimizer keeps for each parameter and moves by: all floating-point tensors but its count of steps."""
    return [
        (p, k, v)
        for p, kept in state.items()
        for k, v in kept.items()
        if isinstance(v, torch.Tensor) and v.is_floating_point() and k != "step"
    ]


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
