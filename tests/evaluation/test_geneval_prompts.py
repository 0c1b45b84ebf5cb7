"""GenEval's prompts: templates, counts, the metadata format, and scenes in the same form."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from ditkit.data.scenes import TASKS, Draws, held_out, make_scene
from ditkit.evaluation.geneval import (
    TAGS,
    PromptError,
    geneval_prompts,
    image_prompts,
    read_prompts,
    scene_prompt,
    scene_prompts,
    write_prompts,
)
from ditkit.evaluation.geneval.metadata import parse
from ditkit.evaluation.geneval.prompts import COUNTS, plural, with_article
from ditkit.pretrained.coco import CLASSES, COLOURS

PUBLISHED_FORM = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting",
        "include": [{"class": "clock", "count": 4}],
        "exclude": [{"class": "clock", "count": 5}],
        "prompt": "a photo of four clocks",
    },
    {
        "tag": "position",
        "include": [{"class": "tv", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}],
        "prompt": "a photo of a dog right of a tv",
    },
    {
        "tag": "color_attr",
        "include": [{"class": "cup", "count": 1, "color": "purple"}, {"class": "vase", "count": 1, "color": "black"}],
        "prompt": "a photo of a purple cup and a black vase",
    },
]  # fmt: skip


def test_counts_and_templates():
    prompts = geneval_prompts()
    by_tag = {tag: [p for p in prompts if p.tag == tag] for tag in TAGS}
    assert {tag: len(found) for tag, found in by_tag.items()} == COUNTS and len(prompts) == 553
    assert len({p.text for p in prompts}) == 553
    assert len(image_prompts(prompts)) == 2212 and image_prompts(prompts)[:5].count(prompts[0].text) == 4
    assert {p.include[0].name for p in by_tag["single_object"]} == set(CLASSES) and len(CLASSES) == 80
    for p in prompts:
        asked = p.include
        words = [" ".join(filter(None, [r.colour, r.name])) for r in asked]
        if p.tag == "counting":
            number = {2: "two", 3: "three", 4: "four"}[asked[0].count]
            assert p.text == f"a photo of {number} {plural(asked[0].name)}"
            assert [(r.name, r.count) for r in p.exclude] == [(asked[0].name, asked[0].count + 1)]
        elif p.tag == "position":
            relation, other = asked[1].position
            assert p.text == f"a photo of {with_article(words[1])} {relation} {with_article(words[0])}" and other == 0
        else:
            assert p.text == "a photo of " + " and ".join(map(with_article, words))
        coloured = p.tag in ("colors", "color_attr")
        assert all((r.colour in COLOURS) == coloured and (r.name != "person" or not coloured) for r in asked)
        assert len({r.name for r in asked}) == len(asked) == 1 + (p.tag in ("two_object", "position", "color_attr"))


def test_seeded():
    assert geneval_prompts(1) == geneval_prompts(1) != geneval_prompts(2)
    few = geneval_prompts(1, {"position": 3})
    assert few == [p for p in geneval_prompts(1) if p.tag == "position"][:3]
    with pytest.raises(ValueError, match="fewer than 241 different prompts of task 'counting'"):
        geneval_prompts(1, {"counting": 241})
    with pytest.raises(ValueError, match="no task 'dance'"):
        geneval_prompts(1, {"dance": 1})


def test_words():
    assert [with_article(w) for w in ("umbrella", "orange cat", "hair drier")] == [
        "an umbrella", "an orange cat", "a hair drier",
    ]  # fmt: skip
    assert [plural(w) for w in ("bus", "skis", "knife", "dog")] == ["buses", "skises", "knifes", "dogs"]


def test_published_metadata_survive_a_round_trip(tmp_path):
    file = tmp_path / "evaluation_metadata.jsonl"
    file.write_text("\n".join(map(json.dumps, PUBLISHED_FORM)) + "\n\n")
    prompts = read_prompts(file)
    assert [p.metadata() for p in prompts] == PUBLISHED_FORM
    assert prompts[2].include[1].position == ("right of", 0) and prompts[3].include[1].colour == "black"
    for made in (prompts, geneval_prompts(), scene_prompts(5)):
        write_prompts(tmp_path / "again.jsonl", made)
        assert read_prompts(tmp_path / "again.jsonl") == made


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: not GenEval metadata"),
        ('{"tag": "colors", "prompt": "x"}', "no 'include'; one object a line has 'tag', 'include', 'prompt'"),
        ('{"tag": "dance", "prompt": "x", "include": [{"class": "cat", "count": 1}]}', "no task 'dance'"),
        ('{"tag": "colors", "prompt": "x", "include": []}', "include is empty"),
        ('{"tag": "colors", "prompt": "x", "include": [{"class": "cat", "count": 0}]}', "count 0 asks for nothing"),
        ('{"tag": "colors", "prompt": "x", "include": [{"class": "cat", "count": 1, "size": 2}]}', "has no 'size'"),
        ('{"tag": "colors", "prompt": "x", "include": [{"class": "cat", "count": 1}], "seed": 1}', "has no 'seed'"),
        (
            '{"tag": "position", "prompt": "x", "include": [{"class": "cat", "count": 1, "position": ["near", 0]}]}',
            "give a relation",
        ),
        (
            '{"tag": "position", "prompt": "x", "include": [{"class": "cat", "count": 1, "position": ["above", 0]}]}',
            "the number of an earlier object",
        ),
    ],
)
def test_bad_files_get_one_line(line, message, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps(PUBLISHED_FORM[0]) + "\n" + line)
    with pytest.raises(PromptError, match=r"prompts\.jsonl, line 2") as caught:
        read_prompts(file)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_no_file_and_no_prompts(tmp_path):
    with pytest.raises(PromptError, match="no such file of prompts"):
        read_prompts(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(PromptError, match="no prompts in it"):
        read_prompts(tmp_path / "empty.jsonl")


def test_scene_prompts():
    prompts = scene_prompts(16, seed=3)
    assert TASKS == TAGS and Counter(p.tag for p in prompts) == dict.fromkeys(TAGS, 16)
    assert prompts == scene_prompts(16, seed=3) != scene_prompts(16, seed=4)
    different = {tag: {p.text for p in prompts if p.tag == tag} for tag in TAGS}
    assert {tag: len(found) for tag, found in different.items()} == {
        "single_object": 3, "two_object": 6, "counting": 16, "colors": 15, "position": 16, "color_attr": 16,
    }  # fmt: skip
    assert [parse(p.metadata()) for p in prompts] == prompts
    for p in prompts:
        if p.tag in ("position", "color_attr"):
            first, second = ((r.name, r.colour) for r in p.include)
            assert held_out(first, second), "the pairs that training never shows"
    assert not any(held_out(*((r.name, r.colour) for r in p.include))
                   for p in scene_prompts(16, split="train") if p.tag in ("position", "color_attr"))  # fmt: skip
    with pytest.raises(ValueError, match="at least one prompt"):
        scene_prompts(0)


def test_a_position_prompt_reads_as_its_scene():
    scene = make_scene("position", "all", Draws("t", 0, 1))
    first, second = scene.things
    prompt = scene_prompt(scene)
    assert prompt.text == f"a {first.colour} {first.shape} {scene.relation} a {second.colour} {second.shape}"
    assert prompt.include[1].position == (scene.relation, 0) and prompt.include[1].name == first.shape
