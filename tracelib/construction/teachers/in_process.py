"""A teacher in this process: a transformers model behind the project's own engine."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import torch

from tracelib.construction.teachers.batching import Answer, RequestBatches
from tracelib.construction.teachers.endpoint_reply import check_reply
from tracelib.construction.teachers.teacher import Reply, Request, TeacherError, make_key
from tracelib.data.collator import ChatProcessor, TokenizedTurn, Turn
from tracelib.data.images import ImageError, load_image
from tracelib.models.backbone import Dtype
from tracelib.models.encoder import Encoder
from tracelib.models.engine import ReasoningEngine
from tracelib.models.gates import AlwaysGate
from tracelib.models.sampling import Sampling
from tracelib.prompts import Messages

_END_TOKEN = "<|im_end|>"
_DTYPE: Dtype = "float32"
_PART_SIZE = 32  # requests that are read at once, of similar length: little of them is padding


class EngineTeacher:
    """Answers with a model in this process; requests in flight together are written together.

    A reply depends on its request alone, also a drawn one, up to rounding. The reply schema of a
    request is not held to.

    Args:
        backbone: Folder or hub name of a model that transformers loads for image and text, or
            `embedded` for the one that ships with the package.
        picture_root: Folder that the requests' pictures lie in, or None if there are none.
        batch_size: Most requests that are written at the same time, 1 and above.
        end_token: Token that ends a reply in the backbone's chats.
        device: Where the model runs; `auto` takes a CUDA device if there is one.
        dtype: Type of the weights.
        max_image_tokens: Most image tokens of a request, shared evenly by its pictures; None keeps
            the backbone's own limit for each.

    Attributes:
        name: Name that the rows carry, `backbone`.
        key: Name and what is set of `end_token`, `dtype` and `max_image_tokens`.

    Raises:
        ValueError: `batch_size` is out of its range.
    """

    def __init__(
        self,
        backbone: str = "embedded",
        picture_root: Path | None = None,
        batch_size: int = 128,
        end_token: str = _END_TOKEN,
        device: str = "auto",
        dtype: Dtype = _DTYPE,
        max_image_tokens: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; allowed 1 and above")
        self._backbone, self._picture_root = backbone, picture_root
        self._batch_size, self._end_token = batch_size, end_token
        cuda_or_cpu = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = cuda_or_cpu if device == "auto" else device
        self._dtype: Dtype = dtype
        self._max_image_tokens = max_image_tokens
        self._batches: RequestBatches | None = None
        self.name = backbone
        chosen = {"end_token": end_token, "dtype": dtype, "max_image_tokens": max_image_tokens}
        usual = {"end_token": _END_TOKEN, "dtype": _DTYPE, "max_image_tokens": None}
        self.key = make_key(backbone, dict(chosen.items() - usual.items()))

    async def __aenter__(self) -> EngineTeacher:
        """Load the model.

        Raises:
            RuntimeError: It is loaded.
            ValueError: The backbone cannot be loaded, or does not know the end token.
        """
        if self._batches:
            raise RuntimeError(f"teacher {self.name!r} is entered already")
        writer = await asyncio.to_thread(self._load)
        self._batches = RequestBatches(writer.answer, self._batch_size)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let the model go, once the batch at work is written; it can be entered again."""
        batches, self._batches = self._batches, None
        if batches:
            await batches.close()

    async def ask(self, request: Request) -> Reply:
        """Answer one request.

        Raises:
            RuntimeError: The teacher is not entered.
            TeacherError: There is no whole answer.
        """
        if not self._batches:
            raise RuntimeError(f"teacher {self.name!r} is asked outside `async with`")
        return await self._batches.ask(request)

    def _load(self) -> _Writer:
        processor = ChatProcessor(self._backbone, max_image_tokens=self._max_image_tokens)
        if self._end_token not in processor.tokenizer.get_vocab():
            raise ValueError(
                f"end_token is {self._end_token!r}; allowed are tokens of {self._backbone!r}, as a "
                "rule the one that closes a message in its chat template"
            )
        encoder = Encoder(self._backbone, self._end_token, dtype=self._dtype)
        encoder.to(self._device).eval()
        return _Writer(self.name, processor, encoder, self._picture_root, self._batch_size)


class _Writer:
    """Writes the replies of a batch, in the thread that has the model."""

    def __init__(
        self,
        name: str,
        processor: ChatProcessor,
        encoder: Encoder,
        picture_root: Path | None,
        batch_size: int,
    ) -> None:
        self._name, self._processor, self._encoder = name, processor, encoder
        self._picture_root, self._batch_size = picture_root, batch_size

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Return what became of each request."""
        answers: dict[int, Answer] = {}
        groups: dict[tuple[int, float], list[tuple[int, TokenizedTurn]]] = {}
        for place, request in enumerate(requests):
            try:
                prompt = self._read_prompt(request)
            except TeacherError as error:
                answers[place] = error
            else:
                alike = groups.setdefault((request.max_tokens, request.temperature), [])
                alike.append((place, prompt))
        for (max_tokens, temperature), prompts in groups.items():
            prompts.sort(key=lambda prompt: len(prompt[1].ids))
            places = [place for place, _ in prompts]
            numbers = [_draw_number(requests[place]) for place in places]
            replies = self._write([turn for _, turn in prompts], numbers, max_tokens, temperature)
            answers.update(zip(places, replies, strict=True))
        return [answers[place] for place in range(len(requests))]

    def _read_prompt(self, request: Request) -> TokenizedTurn:
        messages, paths = _split_pictures(request.messages)
        if paths and self._picture_root is None:
            raise TeacherError(False, "picture", "the request has pictures; set picture_root")
        try:
            images = [load_image(self._picture_root or Path(), path) for path in paths]
        except (ImageError, OSError) as error:
            raise TeacherError(False, "picture", str(error)) from error
        (prompt,) = self._processor.tokenize([Turn(messages, images)])
        longest = self._encoder.max_positions
        if len(prompt.ids) + request.max_tokens > longest:
            raise TeacherError(
                False,
                "rejected",
                f"{len(prompt.ids)} tokens and a reply of up to {request.max_tokens} are more than "
                f"the {longest} of {self._name!r}; shorten the prompt or lower max_tokens",
            )
        return prompt

    def _write(
        self,
        prompts: list[TokenizedTurn],
        numbers: list[int],
        max_tokens: int,
        temperature: float,
    ) -> list[Answer]:
        engine = ReasoningEngine(self._encoder, None, max_tokens, self._batch_size)
        parts = [
            self._processor.pad(prompts[start : start + _PART_SIZE])
            for start in range(0, len(prompts), _PART_SIZE)
        ]
        started = time.perf_counter()
        output = engine.embed_queries(
            parts,
            AlwaysGate(),
            torch.zeros(len(prompts)),
            torch.tensor(numbers),
            Sampling(temperature),
        )
        seconds = time.perf_counter() - started
        # The engine writes at least one token, where the likeliest reply is none.
        is_empty = output.emb_is_first if temperature == 0 else torch.zeros(len(prompts)).bool()
        answers: list[Answer] = []
        for place, prompt in enumerate(prompts):
            ids = [] if is_empty[place] else output.rationale_token_ids[place]
            num_tokens = len(ids) + 1  # the end token counts
            reply = Reply(
                str(self._processor.tokenizer.decode(ids, skip_special_tokens=True)),
                self._name,
                len(prompt.ids),
                num_tokens,
                seconds,
                "length" if num_tokens > max_tokens else "stop",
            )
            try:
                answers.append(check_reply(reply, self._name))
            except TeacherError as error:
                answers.append(error)
        return answers


def _split_pictures(messages: Messages) -> tuple[Messages, list[str]]:
    """Return the messages with a slot in place of each picture, and the pictures' paths."""
    paths: list[str] = []
    split = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            paths += [part["path"] for part in content if part["type"] == "image_path"]
            content = [{"type": "image"} if "path" in part else part for part in content]
        split.append({**message, "content": content})
    return split, paths


def _draw_number(request: Request) -> int:
    """Return a number for what is drawn: of seed and chat, so that equal seeds draw apart."""
    chat = json.dumps([request.seed, request.messages], sort_keys=True).encode()
    return int.from_bytes(hashlib.blake2b(chat, digest_size=7).digest(), "little")
