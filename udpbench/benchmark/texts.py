"""What the text encoders of a cell are given: prompts must fit, captions may be cut, a class prompt must be there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from udpbench.benchmark.cell import Cell, Part
from udpbench.core.errors import Errors
from udpbench.core.folders import Facts
from udpbench.interfaces import Owner
from udpbench.models.tokenizer import Tokenizer
from udpbench.optim.several import Several

Check = Callable[[Tokenizer], int]  # how many captions are cut; ValueError for a prompt that would be


def long_prompts(cell: Cell, only: Part | None = None) -> Iterator[str]:
    """A line for every method (or for ``only`` this one) whose model takes less than a prompt that it is given."""
    for role, part, check, tokenizer in _readers(cell):
        errors = Errors()
        if only in (None, part):
            errors.attempt(check, tokenizer)
        yield from (f"{line} ({part.name}, {role})" for line in errors)


def cut_captions(cell: Cell) -> int:
    """How many captions are longer than a text encoder takes that reads them."""
    return max((check(tokenizer) for _, _, check, tokenizer in _readers(cell)), default=0)


def lacks_class_prompt(cell: Cell) -> Iterator[str]:
    """Says what the class prompt is needed for, if the data has none."""
    facts = _facts(cell)
    if facts is None or facts.class_prompt is not None:
        return
    owners = {"protect": cell.protect} | ({"protect@like": cell.like} if cell.like else {})
    asking = [part for part in owners.values() if _reads_prompts(part, cell.surrogate)]
    wanting = [f"{group}={part.name}" for group, part in owners.items() if "class_images" in part.component.needs]
    needed = {
        "what the owner writes (owner_prompt)": cell.owner_prompt == "class"
        and any("class" in part.component.model_prompts(["class"]) for part in asking),
        f"class pictures of {' and '.join(wanting)}": bool(wanting),
        f"task={cell.task.name}": cell.task.component.uses_class_prompt,
    }
    if reasons := [reason for reason, is_so in needed.items() if is_so]:
        said = f"{facts.instance_prompt!r} without the subject's word names no class"
        yield f"data: give data.class_prompt, such as 'a photo of a dog': {said}; it is for {', '.join(reasons)}"


def _readers(cell: Cell) -> Iterator[tuple[str, Part, Check, Tokenizer]]:
    """(role, method, check, tokenizer) of everything that reads texts of the cell's data, if both are known already."""
    if (facts := _facts(cell)) is None:
        return
    captions = cell.data.component.own_captions()
    general = [facts.class_prompt or ""]
    owner_texts = {"class": ([], general), "data": (captions, [facts.instance_prompt]), "empty": ([], [])}
    owner_captions, owner_prompts = owner_texts[cell.owner_prompt]
    known = cell.data.component.known_captions() if cell.owner_prompt == "data" else []
    owner = Owner(
        [],
        [],
        known or owner_prompts or [""],
        token=cell.data.component.token or "",
        class_prompt=facts.class_prompt or "",
    )
    task, asked = cell.task.component, cell.task.component.model_prompts(facts)
    purified = [facts.instance_prompt, *cell.attack.component.model_prompts()]
    sampling = cell.attack.component.sampling()
    steered = [sampling["negative_prompt"]] if "negative_prompt" in sampling else []

    def of_task(tokenizer: Tokenizer) -> int:
        tokenizer.check([], steered)
        return task.check_texts(tokenizer, captions, asked)

    def of_owner(part: Part) -> Check:
        more = general if "class_images" in part.component.needs else []

        def check(tokenizer: Tokenizer) -> int:
            part.component.check_texts(tokenizer, owner)
            return tokenizer.check(owner_captions, [*part.component.model_prompts(owner_prompts), *more])

        return check

    readers: list[tuple[str, Part, Part, Check]] = [
        *((role, model, part, of_owner(part)) for role, model, part in _of_owner(cell)),
        ("purifier", cell.purifier, cell.attack, lambda tokenizer: tokenizer.check(captions, purified)),
        ("victim", cell.victim, cell.task, of_task),
    ]
    for role, model, part, check in readers:
        if _reads_prompts(part, model) and (tokenizer := model.component.tokenizer):
            yield f"{role} {model.name}", part, check, tokenizer


def _of_owner(cell: Cell) -> Iterator[tuple[str, Part, Part]]:
    """(role, model, method) of every model that a method of the owner uses."""
    for part in filter(None, (cell.protect, cell.like)):
        yield "surrogate", cell.surrogate, part
        if isinstance(part.component, Several):
            for name, model in part.component.further.items():
                yield "further surrogate", replace(cell.surrogate, name=name, component=model), part


def _reads_prompts(part: Part, model: Part) -> bool:
    """Whether a method gives its model prompts."""
    return bool(part.component.needs & {"text", "denoise"}) and "text" in model.component.capabilities


def _facts(cell: Cell) -> Facts | None:
    """What the data says, unless something is wrong with it: that is told by the data and the task themselves."""
    data, errors = cell.data.component, Errors()
    errors.attempt(data.check)
    errors.attempt(cell.task.component.check_data, data)
    facts = errors.attempt(data.facts)
    return None if errors else facts
