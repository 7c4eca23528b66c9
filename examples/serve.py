"""Digits over HTTP: requests of different samplers, numbers of steps and seeds share every evaluation of one model.

python examples/serve.py --port 8000             # then http://127.0.0.1:8000/digit?seed=7&sampler=unipc&steps=12
python examples/serve.py --measure --out served.png      # requests a second and latency; every request against its run alone
python examples/serve.py --step-cost             # what a step costs beside a loop over diffusers' schedulers

A request joins the batch at its next step and leaves when its own steps are done or its client hangs up. Without --run,
a folder of `pyfold train diffusion` or `pyfold demo`, a small model is trained first.
"""

import argparse
import asyncio
import io
import random
import statistics
import time
from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import diffusers
import numpy as np
import torch
from PIL import Image
from torch.nn.functional import pad
from tqdm import tqdm

from pyfold import diffusion
from pyfold.diffusion import serve
from pyfold.train.config import Config
from pyfold.train.data import load_for
from pyfold.train.pictures import image_grid, save_picture
from pyfold.train.run import open_run
from pyfold.train.trainers import DiffusionTrainer

SHAPE, MOST_STEPS = (1, 8, 8), 100
#: Samplers by the name in a request: pyfold's, and diffusers' class of it.
MENU = {
    "ddim": (diffusion.ddim, diffusers.DDIMScheduler, {"clip_sample": True}),
    "dpmpp_2m": (diffusion.dpmpp_multistep, diffusers.DPMSolverMultistepScheduler, {}),
    "unipc": (diffusion.unipc, diffusers.UniPCMultistepScheduler, {}),
    "euler_ancestral": (diffusion.euler_ancestral, diffusers.EulerAncestralDiscreteScheduler, {}),
}
COSINE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}


@dataclass(frozen=True)
class Request:
    seed: int
    sampler: str
    steps: int
    kind: str = "png"

    @staticmethod
    def of(target):
        """From the target of an HTTP request; ValueError says what is wrong with it."""
        parts = urlsplit(target)
        asked = {"seed": "0", "sampler": "unipc", "steps": "12", "as": "png", **dict(parse_qsl(parts.query))}
        if parts.path != "/digit" or len(asked) > 4:
            raise ValueError("ask for /digit?seed=N&sampler=NAME&steps=N&as=png")
        seed, steps = int(asked["seed"]), int(asked["steps"])
        if asked["sampler"] not in MENU or asked["as"] not in ("png", "float32"):
            raise ValueError(f"sampler must be one of {', '.join(MENU)}, and as png or float32")
        if not 1 <= steps <= MOST_STEPS or not 0 <= seed < 2**64:
            raise ValueError(f"steps must be from 1 to {MOST_STEPS} and seed of 64 bits, got {steps} and {seed}")
        return Request(seed, asked["sampler"], steps, asked["as"])

    @property
    def target(self):
        return f"/digit?seed={self.seed}&sampler={self.sampler}&steps={self.steps}&as={self.kind}"


@lru_cache(maxsize=1024)
def plan_of(sampler, steps):
    """One plan object for all requests that ask for it, so that its rows are made once."""
    return MENU[sampler][0](diffusion.vp_cosine(), steps, prediction="v")


def in_groups(model, size):
    """The model in batches of one size, filled up with zeros: kernels may add in another order for another size."""

    def evaluate(x, t):
        outputs = []
        for some, times in zip(x.split(size), t.split(size), strict=True):
            more = size - len(some)
            outputs.append(model(pad(some, [0] * (2 * x.dim() - 1) + [more]), pad(times, [0, more]))[: len(some)])
        return torch.cat(outputs)

    return evaluate


class Fused:
    """pyfold.diffusion.serve: one pass for all."""

    def __init__(self, model, slots, shape=SHAPE):
        self.model, self.batch = model, serve.Batch(slots, shape)

    def join(self, request):
        return self.batch.join(plan_of(request.sampler, request.steps), request.seed)

    def step(self):
        return self.batch.step(self.model)

    def take(self, slot):
        return self.batch.take(slot)

    def leave(self, slot):
        self.batch.leave(slot)


class Schedulers:
    """The same with a scheduler of diffusers' for each request, and a loop over them."""

    def __init__(self, model, slots, shape=SHAPE):
        self.model, self.shape, self.runs = model, shape, [None] * slots

    def join(self, request):
        slot = self.runs.index(None)
        _, kind, options = MENU[request.sampler]
        scheduler, generator = kind(**COSINE, **options), torch.Generator().manual_seed(request.seed)
        scheduler.set_timesteps(request.steps)
        x = torch.randn(1, *self.shape, generator=generator) * scheduler.init_noise_sigma
        draws = {"generator": generator} if request.sampler in ("ddim", "euler_ancestral") else {}
        self.runs[slot] = [scheduler, list(scheduler.timesteps), x, draws]
        return slot

    def step(self):
        taken = [(slot, run) for slot, run in enumerate(self.runs) if run and run[1]]
        inputs = [scheduler.scale_model_input(x, times[0]) for _, (scheduler, times, x, _) in taken]
        times = torch.stack([run[1][0] for _, run in taken]).float()
        for (_, run), output in zip(taken, self.model(torch.cat(inputs), times).split(1), strict=True):
            scheduler, left, x, draws = run
            run[2] = scheduler.step(output, left.pop(0), x, return_dict=False, **draws)[0]
        return [slot for slot, run in taken if not run[1]]

    def take(self, slot):
        x = self.runs[slot][2][0]
        self.leave(slot)
        return x

    def leave(self, slot):
        self.runs[slot] = None


class Server:
    """Requests wait for a slot, share steps, and go; a client that hangs up frees its slot at the next step."""

    def __init__(self, engine, slots):
        self.engine, self.slots = engine, slots
        self.waiting, self.running, self.wake = deque(), {}, asyncio.Event()

    async def __aenter__(self):
        self.worker = asyncio.create_task(self.work())
        self.socket = await asyncio.start_server(self.talk, "127.0.0.1", arguments.port)
        self.port = self.socket.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.socket.close()
        self.worker.cancel()
        await asyncio.gather(self.worker, return_exceptions=True)

    async def draw(self, request):
        answer = asyncio.get_running_loop().create_future()
        self.waiting.append((request, answer))
        self.wake.set()
        return await answer

    async def work(self):
        try:
            while True:
                while self.waiting and len(self.running) < self.slots:
                    request, answer = self.waiting.popleft()
                    if not answer.cancelled():
                        self.running[self.engine.join(request)] = answer
                if not self.running:
                    self.wake.clear()
                    await self.wake.wait()
                    continue
                for slot in await asyncio.to_thread(self.engine.step):
                    x, answer = self.engine.take(slot), self.running.pop(slot)
                    if not answer.cancelled():
                        answer.set_result(x)
                for slot in [slot for slot, answer in self.running.items() if answer.cancelled()]:
                    self.engine.leave(slot)
                    del self.running[slot]
        except Exception as error:  # nobody waits for an answer that will not come
            for answer in [*self.running.values(), *(answer for _, answer in self.waiting)]:
                if not answer.done():
                    answer.set_exception(error)
            raise

    async def talk(self, reader, writer):
        try:
            while line := await reader.readline():
                while (await reader.readline()).strip():
                    pass
                status, kind, body = await self.answer(reader, line.decode("latin-1").split())
                if status is None:
                    break
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
                )
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def answer(self, reader, words):
        """(status, type, body); None where the client went."""
        try:
            request = Request.of(words[1] if words[:1] == ["GET"] and len(words) == 3 else "")
        except ValueError as error:
            return "400 Bad Request", "text/plain", f"{error}\n".encode()
        drawn, gone = asyncio.create_task(self.draw(request)), asyncio.create_task(reader.read(1))
        try:
            await asyncio.wait({drawn, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not drawn.done():
                return None, "", b""
            x = await drawn
        except Exception as error:
            return "500 Internal Server Error", "text/plain", f"{error}\n".encode()
        finally:
            drawn.cancel()
            gone.cancel()
            await asyncio.gather(drawn, gone, return_exceptions=True)
        if request.kind == "float32":
            return "200 OK", "application/octet-stream", x.numpy().tobytes()
        file = io.BytesIO()
        Image.fromarray(image_grid(x[None])).save(file, "png")
        return "200 OK", "image/png", file.getvalue()


# --- the load


async def ask(reader, writer, request):
    writer.write(f"GET {request.target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    body = await reader.readexactly(int(head.split("Content-Length: ")[1].split()[0]))
    if not head.startswith("HTTP/1.1 200"):
        raise RuntimeError(body.decode())
    return body


async def hang_up(port, request):
    """Goes away after a moment, its digit unfinished."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {request.target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    await writer.drain()
    await asyncio.sleep(0.03)
    writer.close()


async def load(port, requests, in_flight, impatient=(), what=None):
    """(answers by request, seconds of each, of all), so many at once; beside them clients that hang up."""
    bar = tqdm(total=len(requests), desc=what, unit="request", leave=False, disable=what is None)
    left, answers, seconds = deque(requests), {}, []

    async def client():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while left:
            request, begin = left.popleft(), time.perf_counter()
            answers[request] = await ask(reader, writer, request)
            seconds.append(time.perf_counter() - begin)
            bar.update()
        writer.close()

    begin = time.perf_counter()
    with bar:
        await asyncio.gather(*(client() for _ in range(in_flight)), *(hang_up(port, request) for request in impatient))
    return answers, seconds, time.perf_counter() - begin


def some_requests(count, kind="png", seed=0, steps=(6, 20)):
    draws = random.Random(seed)
    return [Request(draws.randrange(2**64), draws.choice(list(MENU)), draws.randint(*steps), kind) for _ in range(count)]


async def measure(model, counts):
    """The table: one request at a time, a loop over diffusers' schedulers, and one pass for all."""
    print("| | in flight | requests a second | median latency, ms | 95 % below, ms |\n|---|---|---|---|---|")
    rows = (
        ("one request at a time", Fused, 1, model),
        ("a loop over diffusers' schedulers", Schedulers, 64, in_groups(model, arguments.group)),
        ("pyfold", Fused, 64, in_groups(model, arguments.group)),
    )
    responses = {}
    for name, engine, slots, evaluate in rows:
        for in_flight, count in counts.items():
            async with Server(engine(evaluate, slots), slots) as server:
                await load(server.port, some_requests(4, seed=1), 4)
                responses, seconds, total = await load(server.port, some_requests(count), in_flight, what=name)
            middle, high = statistics.median(seconds), sorted(seconds)[int(0.95 * len(seconds))]
            print(f"| {name} | {in_flight} | {count / total:.1f} | {1000 * middle:.0f} | {1000 * high:.0f} |", flush=True)
    return responses


async def check(model, count):
    """Every request's bits are those of its run alone, whatever ran beside it; those that hung up leave no slot taken."""
    evaluate = in_groups(model, arguments.group)
    engine = Fused(evaluate, 64)
    async with Server(engine, 64) as server:
        requests, impatient = some_requests(count, "float32", 2, (4, 12)), some_requests(count // 20, steps=(100, 100), seed=3)
        answers, _, _ = await load(server.port, requests, 64, impatient, "served")
        for _ in range(1000):
            if not (server.running or server.waiting):
                break
            await asyncio.sleep(0.01)
        taken = len(engine.batch)
    same = 0
    for request in tqdm(requests, desc="alone", unit="request", leave=False):
        alone = diffusion.sample(evaluate, plan_of(request.sampler, request.steps), SHAPE, [request.seed])
        same += answers[request] == alone.numpy().tobytes()
    print(f"{len(answers)} of {count} requests answered, {same} with the bits of a run alone")
    print(f"{len(impatient)} more hung up; {taken} slots taken at the end")


def step_cost(rounds):
    """Microseconds of a step of mixed samplers, the model's own time left out; median of all steps."""
    print("| sample | requests | pyfold, us | diffusers' schedulers, us | times as long |\n|---|---|---|---|---|")
    steps = 20
    for shape in ((1, 8, 8), (4, 64, 64)):
        for count in (1, 8) if arguments.quick else (1, 8, 64):
            output, cost = torch.randn(64, *shape, generator=torch.Generator().manual_seed(0)), {}
            engines = [engine(lambda x, t, output=output: output[: len(x)], count, shape) for engine in (Fused, Schedulers)]
            size = "x".join(map(str, shape))
            for turn in tqdm(range(rounds), desc=f"{count} of {size}", unit="round", leave=False):
                for engine in engines:
                    for k in range(count):
                        engine.join(Request(k, list(MENU)[(turn + k) % len(MENU)], steps))
                    for _ in range(steps):
                        begin = time.perf_counter()
                        ended = engine.step()
                        cost.setdefault(engine, []).append(time.perf_counter() - begin)
                    for slot in ended:
                        engine.take(slot)
            ours, theirs = (1e6 * statistics.median(cost[engine]) for engine in engines)
            print(f"| {size} | {count} | {ours:.0f} | {theirs:.0f} | {theirs / ours:.1f} |", flush=True)


def digits_model(run, steps):
    """``model(x, t)`` that says v, of a run's folder or trained here."""
    if run is not None:
        trainer, config, _ = open_run(run, torch.device("cpu"))
        if (config.data, config.objective, config.schedule, config.prediction) != ("digits", "denoising", "vp_cosine", "v"):
            raise ValueError(f"run must be of digits on vp_cosine with prediction v, got {config}")
    else:
        config = Config("diffusion", steps=steps, width=16)
        trainer = DiffusionTrainer(config, load_for(config), torch.device("cpu"))
        for step in tqdm(range(steps), desc="training", unit="step", leave=False):
            trainer.step(step)

    @torch.no_grad()
    def model(x, t):
        return trainer.denoise(trainer.average, x, t)

    return model


async def serve_forever(model):
    async with Server(Fused(in_groups(model, arguments.group), 64), 64) as server:
        print(f"http://127.0.0.1:{server.port}/digit?seed=7&sampler=unipc&steps=12 (Ctrl-C ends)", flush=True)
        await server.socket.serve_forever()


async def measured(model):
    responses = await measure(model, {8: 12} if arguments.quick else {1: 60, 8: 200, 64: 500})
    digits = [torch.from_numpy(pixels(body)) for body in list(responses.values())[:36]]
    save_picture(torch.stack(digits), arguments.out)
    await check(model, 40 if arguments.quick else 1000)


def pixels(png):
    """[1, S, S] in [-1, 1], as served."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"), np.float32)[None] / 127.5 - 1


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--run", type=Path, help="folder of a run with a digits model")
parser.add_argument("--train-steps", type=int, default=1200, help="of the model that is trained without --run")
parser.add_argument("--port", type=int, default=0, help="by default a free one")
parser.add_argument("--group", type=int, default=8, help="samples of one evaluation of the model")
parser.add_argument("--measure", action="store_true", help="load the server, and compare every answer with its run alone")
parser.add_argument("--step-cost", action="store_true", help="time steps without a model")
parser.add_argument("--out", type=Path, default=Path("served.png"), help="picture of digits as served")
parser.add_argument("--quick", action="store_true", help="--measure and --step-cost on an untrained model, in seconds")

if __name__ == "__main__":
    arguments = parser.parse_args()
    if arguments.step_cost or arguments.quick:
        step_cost(1 if arguments.quick else 20)
    if not arguments.step_cost:
        digits = digits_model(arguments.run, 2 if arguments.quick else arguments.train_steps)
        asyncio.run((measured if arguments.measure or arguments.quick else serve_forever)(digits))
