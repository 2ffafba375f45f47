"""EditScore's questions to any end point that speaks OpenAI's chat completions (vLLM, `transformers serve`)."""

import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from edit_rl_jax.data.images import image_size
from edit_rl_jax.rewards.base import Edit, Judgement
from edit_rl_jax.rewards.editscore.aggregate import DIMENSIONS, judge, questions_of
from edit_rl_jax.rewards.editscore.named_prompts import get
from edit_rl_jax.rewards.editscore.options import Options
from edit_rl_jax.rewards.editscore.parsing import Reply, parse
from edit_rl_jax.rewards.editscore.prompts import Prompts, Question
from edit_rl_jax.rewards.serving.chat import Chat, to_messages
from edit_rl_jax.rewards.serving.client import each, encoded, judged


class VLMJudge:
    """A vision-language model behind OpenAI's chat completions, asked EditScore's questions.

    Args:
      url: up to and with the version, `http://host:8000/v1`.
      prompts: the texts; the chat layout is the end point's.
      passes: answers a question; each has a seed of its own, made from the content.
      attempts: how often an answer is asked for, with another seed each time, until it can be read.
      reduction: of the passes (see `aggregate`).
      must_answer: raise NoAnswer for an edit without an answer.
      extra: more fields of the request, as `{"top_k": 20}` for vLLM; None takes a field out.
      options: Service's.
    Raises ValueError for several passes at temperature 0, and for prompts that there are not.
    """

    OPTIONS = ("prompts", "passes", "reduction", "retries", "temperature", "top_p", "max_new_tokens", "seed")  # heeded

    def __init__(
        self,
        url: str,
        model: str,
        token: str = "",
        *,
        prompts: str | Prompts = "standard",
        passes: int = 1,
        temperature: float = 0.7,
        top_p: float = 0.9,
        max_new_tokens: int = 512,
        seed: int = 0,
        attempts: int = 3,
        reduction: str = "average_last",
        at_once: int = 16,
        must_answer: bool = False,
        extra: Mapping[str, Any] | None = None,
        **options: Any,
    ):
        fields = {"temperature": temperature, "top_p": top_p, "max_tokens": max_new_tokens} | dict(extra or {})
        if passes > 1 and fields["temperature"] == 0:
            raise ValueError(f"{passes} greedy passes are all the same: give a temperature")
        try:
            self.prompts = get(prompts)
        except KeyError as error:
            raise ValueError(error.args[0]) from None
        self.chat, self.passes, self.seed = Chat(url, model, token, fields, **options), passes, seed
        self.attempts, self.at_once, self.reduction, self.must_answer = attempts, at_once, reduction, must_answer

    @classmethod
    def of_options(cls, url: str, model: str, token: str, options: Options) -> "VLMJudge":
        """Makes the judge of jobs whose results are kept, by the options that EditScore has."""
        if not isinstance(options, Options):
            raise ValueError("an end point is asked EditScore's questions: no other judge's options are known to it")
        names = ("passes", "top_p", "seed", "max_new_tokens", "reduction")
        given = {name: getattr(options, name) for name in names} | {"temperature": options.sampling.temperature}
        given |= {"prompts": options.prompts or "standard", "attempts": 1 + options.retries, "must_answer": True}
        return cls(url, model, token, **given)

    def dimensions(self) -> tuple[str, ...]:
        """Names the scores of SC and of PQ."""
        return DIMENSIONS

    def settings(self) -> dict[str, Any]:
        """Returns what decides the answers, as far as it is known here."""
        texts = {"prompts": self.prompts.name, "prompts_sha256": self.prompts.sha256}
        own = {"passes": self.passes, "seed": self.seed, "attempts": self.attempts}
        own |= {"reduction": self.reduction}
        return {"endpoint": self.chat.service.url, **self.chat.fields, **texts, **own}

    def score(
        self, edits: Sequence[Edit], *, only: Collection[str] | None = None, progress: bool = True
    ) -> list[Judgement]:
        """Judges edits of one source, in order. Raises ServiceError, PermissionError for a refused token."""
        questions = questions_of(only)

        def ask(edit: Edit, stop: threading.Event) -> Judgement:
            replies = {q: self._ask(q, edit, stop) for q in questions}
            return judge(replies.get("sc", ()), replies.get("pq", ()), self.reduction, self.prompts.profile)

        def one(edit: Edit, stop: threading.Event) -> Judgement:
            return judged(lambda: ask(edit, stop), self.must_answer)

        return each(one, edits, self.at_once, progress)

    def _ask(self, question: Question, edit: Edit, stop: threading.Event) -> tuple[Reply, ...]:
        source = edit.only_source("EditScore")
        images = self.prompts.shown(question, encoded(source), encoded(edit.edited))
        for image in images:
            image_size(image)  # an unreadable one is told from here, not by whatever the end point does
        messages = to_messages(self.prompts.build(question, edit.instruction, images))
        how = dict(seed=self.seed, attempts=self.attempts, stop=stop)
        return tuple(self.chat.ask(messages, _read, number=n, **how).reply for n in range(self.passes))


def _read(text: str, problem: str) -> Reply:
    return Reply(None, "", text, (), problem) if problem else parse(text)
