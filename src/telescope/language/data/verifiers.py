"""Environments of the package verifiers: tasks, and conversations that its own code holds and scores.

Such an environment calls a model over HTTP. Here this process is that model: a call waits until the policy has sampled
its turn. Leaves out environments of several agents, and tools.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import queue
import sys
import threading
import types
from collections.abc import Coroutine
from typing import Any

from telescope.language.data.chat import Message
from telescope.language.data.files import Row

PREFIX = "verifiers:"
"""How the name of such a task begins: `verifiers:TASKSET`, `verifiers:ENVIRONMENT+TASKSET`, `…={"game": "chess"}`."""
MOST = 10_000
"""The maximum number of tasks, since some tasksets never end."""
HARNESS = "telescope_harness"
SESSION = "X-Session-ID"
"""The header in which verifiers says which conversation a call belongs to."""


def require() -> Any:
    """The package. An ImportError says how to install it."""
    try:
        import verifiers.v1 as vf
    except ImportError as error:
        raise ImportError(
            f'tasks of verifiers need the package, 0.4 or later ({error}): pip install "telescope-rl[verifiers]"'
        ) from error
    return vf


@functools.cache
def stage(name: str) -> Stage:
    """The environment of this name, started once in this process."""
    return Stage(name)


class Stage:
    """An environment of verifiers with its event loop, and the endpoint that it calls."""

    def __init__(self, name: str) -> None:
        vf = require()
        from verifiers.v1.configs.agent import agent_config_fields
        from verifiers.v1.utils import loaders

        self.name = name
        named, _, settings = name.removeprefix(PREFIX).partition("=")
        env, _, taskset = named.rpartition("+")
        sys.modules.setdefault(HARNESS, _harness(vf))
        which = {"id": env, "taskset": {"id": taskset, **(json.loads(settings) if settings else {})}}
        roles = list(agent_config_fields(loaders.resolve_env_config(which)))
        if len(roles) != 1:
            raise ValueError(
                f"{name} has the agents {', '.join(roles)}; only environments of one agent can be trained on"
            )
        role = {"harness": {"id": HARNESS}, "runtime": {"type": "subprocess"}}
        self.env = loaders.load_environment(loaders.resolve_env_config({**which, roles[0]: role}))
        self.tasks = list(itertools.islice(self.env.taskset, MOST))
        self.talks: dict[str, Conversation] = {}  # by the session of their calls
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.context = self.run(self._open(vf)).result()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Begin work in the event loop; its future."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    async def _open(self, vf: Any) -> Any:
        from aiohttp import web

        app = web.Application(client_max_size=2**30)
        app.router.add_post("/v1/chat/completions", self._complete)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self._serving = contextlib.AsyncExitStack()
        await self._serving.enter_async_context(self.env.serving())
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        client = vf.EvalClientConfig(base_url=url, api_key_var="TELESCOPE_HAS_NO_KEY")
        return vf.ModelContext(model="policy", client=client)

    async def _complete(self, request: Any) -> Any:
        """Answer a call of the environment with a turn of the policy."""
        from aiohttp import web

        messages, reply = (await request.json())["messages"], self.loop.create_future()
        self.talks[request.headers[SESSION]].events.put((list(map(_plain, messages)), reply))
        message = {"role": "assistant", "content": await reply}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), 0)
        shell = {"id": "turn", "object": "chat.completion", "created": 0, "model": "policy"}
        return web.json_response({**shell, "choices": [choice], "usage": usage})

    async def play(self, index: int, talk: Conversation) -> None:
        """One episode of a task, whose calls become events of the conversation."""
        try:
            episode = await self.env.run_episode(
                self.tasks[index], self.context, on_trace=lambda trace: self.talks.update({trace.id: talk})
            )
            talk.events.put(episode)
            for trace in episode.traces:
                self.talks.pop(trace.id, None)
        except Exception as error:  # to be raised where the conversation is waited for
            talk.events.put(error)


class Conversation:
    """An environment of text (`data/games.py`) whose code runs beside the sampler."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.events = stage, queue.SimpleQueue[Any]()
        self.heard: list[Message] = []
        self.reply: Any = None
        self.playing: Any = None

    def reset(self, row: Row) -> list[Message]:
        self.playing = self.stage.run(self.stage.play(row["index"], self))
        said, _, ended = self._next()
        if ended:
            raise ValueError(f"task {row['index']} of {self.stage.name} ended before it asked the model anything")
        return said

    def step(self, text: str) -> tuple[list[Message], float, bool]:
        self.heard.append({"role": "assistant", "content": text})
        self.stage.loop.call_soon_threadsafe(self.reply.set_result, text)
        return self._next()

    def close(self) -> None:
        """Give up an episode that goes on."""
        if self.playing is not None and not self.playing.done():
            self.playing.cancel()

    def _next(self) -> tuple[list[Message], float, bool]:
        event = self.events.get()
        if isinstance(event, Exception):
            raise event
        if isinstance(event, tuple):
            messages, self.reply = event
            if messages[: len(self.heard)] != self.heard:
                raise ValueError(
                    f"{self.stage.name} changed earlier messages of a conversation, but the model has read them: "
                    f"{self.heard} became {messages}"
                )
            said, self.heard = messages[len(self.heard) :], messages
            return said, 0.0, False
        if not event.ok:
            errors = [*event.errors, *(error for trace in event.traces for error in trace.errors)]
            raise ValueError("; ".join(f"{error.type}: {error.message}" for error in errors) or "the episode failed")
        return [], float(sum(trace.reward for trace in event.traces)), True


def _plain(message: dict[str, Any]) -> Message:
    """Role and text of a message, which may come in parts."""
    content = message.get("content") or ""
    if not isinstance(content, str):
        content = "".join(part.get("text", "") for part in content)
    return {"role": message["role"], "content": content}


def _harness(vf: Any) -> types.ModuleType:
    """A module as verifiers loads one by its name, with a harness that calls the model from this process."""
    import httpx

    clients: dict[Any, Any] = {}  # one for each event loop

    class Harness(vf.Harness[vf.HarnessConfig]):  # type: ignore[misc,name-defined]
        APPENDS_SYSTEM_PROMPT = SUPPORTS_RESUME = True
        EXECUTES_CODE = NEEDS_CONTAINER = False

        async def launch(
            self, ctx: Any, trace: Any, runtime: Any, endpoint: str, secret: str, mcp_urls: Any, data: Any
        ) -> Any:
            system, prompt = self.resolve_prompt(data)
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(map(_dumped, prompt))
            if system is not None:
                messages.insert(0, {"role": "system", "content": system})
            loop = asyncio.get_running_loop()
            if loop not in clients:
                limits = httpx.Limits(max_connections=None)
                clients[loop] = httpx.AsyncClient(timeout=None, limits=limits, trust_env=False)
            found = await clients[loop].post(
                f"{endpoint}/chat/completions",
                json={"model": ctx.model, "messages": messages},
                headers={"Authorization": f"Bearer {secret}"},
            )
            return vf.ProgramResult(exit_code=0 if found.is_success else 1, stdout="", stderr=found.text)

    module = types.ModuleType(HARNESS)
    module.__spec__ = None
    vars(module).update(Harness=Harness, __all__=["Harness"])
    return module


def _dumped(message: Any) -> dict[str, Any]:
    return message.model_dump(exclude_none=True)  # type: ignore[no-any-return]
