"""The playground in a real browser, against the demo model: each tab does its job, offline."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect

from itemwise.config import ServerConfig
from tests.browser.browser import Visit, needs_chromium, visit
from tests.server.fakes import FakeScorer, get, running_server, wait_until

pytestmark = [pytest.mark.slow, needs_chromium]
TABS = ("rank", "decide", "score", "server")
TITLES = ["Brass lamp for the desk", "Desk with drawers", "Tea kettle", "Lamps for every desk"]
HOSTILE = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"


def rank(page: Page, query: str, items: str) -> None:
    page.fill("#rank-query", query)
    page.fill("#rank-items", items)
    page.click("#rank button[name=send]")
    page.wait_for_selector("#rank .ranking, #rank .error")
    expect(page.locator("#rank .answer")).to_have_attribute("aria-busy", "false")


def paste(page: Page, text: str) -> None:
    """Puts a text in place of the items, by the clipboard."""
    page.evaluate("text => navigator.clipboard.writeText(text)", text)
    page.fill("#rank-items", "")
    page.focus("#rank-items")
    page.keyboard.press("Control+V")


def texts(page: Page, selector: str) -> list[str]:
    return page.locator(selector).all_inner_texts()


def run_module(page: Page, name: str, expression: str, argument: Any = None) -> Any:
    """What an expression gives that uses `it`, a module of the page, and `given`, the argument."""
    load = f"const it = await import('/playground/{name}')"
    return page.evaluate(f"async (given) => {{ {load}; return {expression}; }}", argument)


# Rank


def test_rank_shows_what_the_api_answers(visitor: Visit) -> None:
    page = visitor.open()
    rank(page, "desk lamps", "\n".join(TITLES))
    asked = {"query": "desk lamps", "documents": TITLES}
    answer = httpx.post(f"{visitor.url}/v2/rerank", json=asked)
    results = answer.json()["results"]
    assert texts(page, ".ranking .text") == [TITLES[each["index"]] for each in results]
    assert texts(page, ".ranking .value") == [f"{each['relevance_score']:.4f}" for each in results]
    widths = page.locator(".ranking .track > span").evaluate_all(
        "all => all.map(e => e.style.width)"
    )
    shown = [float(width.removesuffix("%")) / 100 for width in widths]
    assert shown == pytest.approx([each["relevance_score"] for each in results], abs=1e-4)
    facts = page.inner_text("#rank .facts")
    prompt, shared = (int(answer.headers[f"x-{name}-tokens"]) for name in ("prompt", "shared"))
    assert f"{prompt} tokens instead of {prompt + 3 * shared}: {shared} shared by all" in facts
    legend = " ".join(texts(page, "#rank .legend li"))
    assert all(stage in legend for stage in ("tokenize", "queue", "prefill", "extend", "encode"))
    visitor.check()


def test_top_n_shortens_the_ranking(visitor: Visit) -> None:
    page = visitor.open()
    page.fill("#rank-top", "2")
    rank(page, "desk lamps", "\n".join(TITLES))
    assert len(texts(page, ".ranking li")) == 2
    assert "2 of 4 items" in page.inner_text("#rank .facts")
    visitor.check()


def test_shuffled_alone_and_in_company_the_bits_are_equal(visitor: Visit) -> None:
    page = visitor.open()
    page.fill("#rank-items", "\n".join(TITLES))
    page.click("#rank button[name=compare]")
    verdict = page.locator("#rank .verdict")
    expect(verdict).to_have_attribute("data-differing", "0")
    # Each in another order, each alone, and half of them in other company.
    expect(verdict).to_have_attribute("data-compared", str(4 + 4 + 2))
    expect(verdict.locator("b")).to_have_text("All 10 scores have equal bits")
    visitor.check()


def test_one_bit_of_difference_is_seen(visitor: Visit) -> None:
    """Plants the fault that the comparison is for: a score that depends on the order."""
    page = visitor.open()
    page.fill("#rank-items", "\n".join(TITLES))

    def move_a_bit(route: Route) -> None:
        answer = route.fetch()
        body = answer.json()
        if len(json.loads(route.request.post_data or "")["documents"]) == 1:
            body["results"][0]["relevance_score"] *= 1 + 2**-52
        route.fulfill(response=answer, json=body)

    page.route("**/v2/rerank", move_a_bit)
    page.click("#rank button[name=compare]")
    expect(page.locator("#rank .verdict")).to_have_attribute("data-differing", "4")
    assert "4 scores differ" in page.inner_text("#rank .verdict")


def test_a_pasted_table_is_read_by_columns(visitor: Visit) -> None:
    page = visitor.open()
    table = 'id,title,price\r\n1,"Lamp, brass, for the ""big"" desk",5\r\n2,"Tea\nkettle",7\r\n'
    paste(page, table)
    expect(page.locator("#rank-format")).to_have_value("csv")
    expect(page.locator("#rank-count")).to_have_text("2 items")
    assert page.locator("#rank-column option:checked").inner_text() == "title"
    page.fill("#rank-query", "desk lamps")
    page.click("#rank button[name=send]")
    page.wait_for_selector(".ranking li")
    assert texts(page, ".ranking .text")[0] == 'Lamp, brass, for the "big" desk'
    page.select_option("#rank-column", label="price")
    page.click("#rank button[name=send]")
    expect(page.locator(".ranking .text").first).to_have_text(re.compile("^[57]$"))
    visitor.check()


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("a,b\nc,d", [["a", "b"], ["c", "d"]]),
        ('"a ""b"", c",d\r\n\r\ne,', [['a "b", c', "d"], ["e", ""]]),
        ('"line\r\nbreak"\tx\ty\n1\t2\t3\n', [["line\r\nbreak", "x", "y"], ["1", "2", "3"]]),
        ('a;b\n"c;d";e', [["a", "b"], ["c;d", "e"]]),
        ('a,"never closed, b\nc', [["a", "never closed, b\nc"]]),
        ('5" pipe,x', [['5" pipe', "x"]]),
        ("", []),
        (",\n,", [["", ""], ["", ""]]),
    ],
)
def test_csv_is_read_as_the_standard_says(visitor: Visit, text: str, rows: list[Any]) -> None:
    assert run_module(visitor.open(ready=False), "items.js", "it.parseCsv(given)", text) == rows


def test_prose_is_not_taken_for_a_table(visitor: Visit) -> None:
    page = visitor.open(ready=False)
    prose = ["one, two\nthree, four", "Hiking boot, waterproof\nBoots, warm", "a\nb", "x,y"]
    tables = ["id,title\n1,lamp", '"a","b"\n"c","d"', "a\tb\nc\td"]
    looks = "given.map(it.looksLikeCsv)"
    assert run_module(page, "items.js", looks, prose) == [False] * 4
    assert run_module(page, "items.js", looks, tables) == [True] * 3


def test_five_thousand_items_stay_quick(visitor: Visit) -> None:
    page = visitor.open()
    items = "\n".join(f"{TITLES[i % 4]} {i}" for i in range(5000))
    paste(page, items)
    expect(page.locator("#rank-count")).to_have_text("5,000 items")
    # The server's answer is made here, so that the time is the page's own.
    results = [{"index": i, "relevance_score": 1 - i / 5000} for i in range(5000)]
    answer = {"results": results, "usage": {"total_tokens": 1}}
    page.route("**/v2/rerank", lambda route: route.fulfill(json=answer))
    page.click("#rank button[name=send]")
    page.wait_for_selector(".ranking li")
    assert page.locator(".ranking li").count() <= 400  # more come into view as one scrolls
    rows = page.locator(".ranking li")
    for _ in range(1000):
        if rows.count() == 5000:
            break
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
    assert rows.count() == 5000
    # The text of a row that is not on the screen is not laid out.
    assert page.locator(".ranking .text").last.text_content() == "Lamps for every desk 4999"
    visitor.check()


def test_a_request_can_be_cancelled(visitor: Visit) -> None:
    page = visitor.open()
    page.route("**/v2/rerank", lambda route: None)  # never answered
    page.click("#rank button[name=send]")
    page.click("#rank button[name=cancel]")
    expect(page.locator("#rank .answer")).to_have_text("Cancelled.")
    expect(page.locator("#rank button[name=cancel]")).to_be_hidden()
    visitor.check()


# Score


def test_score_shows_numbers_and_tokens_of_the_api(visitor: Visit) -> None:
    page = visitor.open("score")
    page.check("#score-logprobs")
    page.fill("#score-items", "\n".join(TITLES))
    page.click("#score button[name=send]")
    page.wait_for_selector("#score .tokens")
    body = {
        "query": "desk lamps",
        "items": TITLES,
        "apply_template": True,
        "apply_softmax": True,
        "return_token_logprobs": True,
        "return_tokens": True,
    }
    answer = httpx.post(f"{visitor.url}/v1/score", json=body).json()
    for table, rows in enumerate((answer["scores"], answer["token_logprobs"])):
        cells = texts(page, f"#score table >> nth={table} >> td.number")
        assert [float(cell) for cell in cells] == [value for row in rows for value in row]
    shared = page.locator("#score .tokens").first.locator(".shared").all_text_contents()
    tokens = answer["tokens"]
    assert [text.replace("↵", "\n") for text in shared] == tokens["shared"]["texts"]
    own = page.locator("#score .tokens").first.locator(".token:not(.shared)").all_text_contents()
    assert [text.replace("↵", "\n") for text in own] == tokens["items"][0]["texts"]
    whole = "".join([*tokens["shared"]["texts"], *tokens["items"][0]["texts"]])
    assert whole == "query: desk lamps\nitem: brass lamp for the desk\nmatch:"  # lower-cased
    visitor.check()


def test_score_puts_no_template_around_texts_where_there_is_none(visitor: Visit) -> None:
    page = visitor.open("score")
    expect(page.locator("#score-template")).to_be_checked()

    def without_template(route: Route) -> None:
        answer = route.fetch()
        body = answer.json()
        body["data"][0]["profile"]["name"] = "yes-no"
        route.fulfill(response=answer, json=body)

    page.route("**/v1/models", without_template)
    page.reload()
    expect(page.locator("#score-template")).to_be_disabled()
    with page.expect_request("**/v1/score") as sent:
        page.click("#score button[name=send]")
    assert "apply_template" not in json.loads(sent.value.post_data or "")
    page.wait_for_selector("#score .tokens")
    visitor.check()


def test_score_takes_token_ids(visitor: Visit) -> None:
    page = visitor.open("score")
    page.select_option("#score-kind", "ids")
    page.fill("#score-query", "[5, 6, 7]")
    page.fill("#score-items", "8 9\n10")
    page.fill("#score-labels", "11\n12")
    page.uncheck("#score-template")
    page.click("#score button[name=send]")
    page.wait_for_selector("#score .tokens")
    fields = {"query": [5, 6, 7], "items": [[8, 9], [10]], "label_token_ids": [11, 12]}
    answer = httpx.post(f"{visitor.url}/v1/score", json={**fields, "apply_softmax": True}).json()
    cells = [float(cell) for cell in texts(page, "#score td.number")]
    assert cells == [value for row in answer["scores"] for value in row]
    visitor.check()


# Decide


def test_decide_shows_what_the_api_answers(visitor: Visit) -> None:
    page = visitor.open("decide")
    page.fill("#decide-state", "Ticket: the lamp arrived broken.")
    while page.locator("fieldset.question").count():
        page.locator("fieldset.question button").first.click()
    for kind, text, criteria in (
        ("noul", "Is it broken?", ""),
        ("choice", "Which team?", "billing: refunds\nrepair\nsales"),
        ("score", "How urgent?", "can wait\ntoday"),
    ):
        page.click("#decide button[name=add]")
        question = page.locator("fieldset.question").last
        question.locator("input").fill(text)
        question.locator("select").select_option(kind)
        if criteria:
            question.locator("textarea").fill(criteria)
    page.fill("#decide-rotations", "3")
    page.check("#decide-mass")
    page.click("#decide button[name=send]")
    page.wait_for_selector("#decide .decision")
    expect(page.locator("#decide .decision").first).to_be_in_viewport()  # though the form is long
    choice = {"billing": "refunds", "repair": None, "sales": None}
    questions = {
        "a": {"type": "noul", "instructions": "Is it broken?"},
        "b": {"type": "choice", "instructions": "Which team?", "criteria": choice},
        "c": {"type": "score", "instructions": "How urgent?", "criteria": ["can wait", "today"]},
    }
    body: dict[str, Any] = {"state": "Ticket: the lamp arrived broken.", "questions": questions}
    body |= {"x_rotations": 3, "x_label_mass": True}
    answers = httpx.post(f"{visitor.url}/v1/systemone", json=body).json()["answers"]
    a, b, c = (answers[name] for name in "abc")
    expected = [
        a["noul"],
        1 - a["noul"],
        *b["probabilities"].values(),
        *c["probabilities"].values(),
    ]
    shares = [float(each) for each in texts(page, "#decide .option .number")]
    assert shares == pytest.approx(expected, rel=0.01, abs=5e-5)
    names = ["yes", "no", "billing", "repair", "sales", "can wait", "today"]
    assert texts(page, "#decide .option .name") == names
    assert page.locator("#decide .option.best .name").all_inner_texts()[1] == b["choice"]
    remarks = texts(page, "#decide .decision .hint")
    for remark, answer in zip(remarks, (a, b, c), strict=True):
        mass = float(remark.rpartition("label mass ")[2])
        assert mass == pytest.approx(answer["x_label_mass"], rel=0.01, abs=5e-5)
    visitor.check()


def test_decide_says_where_a_server_does_not(visitor: Visit) -> None:
    page = visitor.open("decide")
    page.route("**/v1/systemone", lambda route: route.fulfill(status=404, json={"message": "no"}))
    page.click("#decide button[name=send]")
    expect(page.locator("#decide [role=alert]")).to_contain_text("has no path /v1/systemone")


# Errors, texts, keys


def test_errors_are_shown_as_the_api_tells_them(visitor: Visit) -> None:
    page = visitor.open("score")
    page.fill("#score-labels", "not one token at all")
    page.click("#score button[name=send]")
    body = {"query": "q", "items": ["a"], "labels": ["not one token at all"]}
    told = httpx.post(f"{visitor.url}/v1/score", json=body).json()["error"]
    box = page.locator("#score [role=alert]")
    expect(box).to_contain_text(told["message"])
    expect(box.locator("code")).to_have_text(f"{told['code']}, status 400, field labels")
    page.click("#tab-rank")
    rank(page, "q", "")
    expect(page.locator("#rank [role=alert]")).to_contain_text("`documents` is empty")
    assert visitor.elsewhere == []


def test_a_server_that_is_gone_is_told_in_words(visitor: Visit) -> None:
    page = visitor.open()
    page.route("**/v2/rerank", lambda route: route.abort())
    page.click("#rank button[name=send]")
    expect(page.locator("#rank [role=alert]")).to_contain_text("The server did not answer")


def test_texts_never_become_markup(visitor: Visit) -> None:
    page = visitor.open()
    rank(page, HOSTILE, f"{HOSTILE}\nTea")
    assert HOSTILE in texts(page, ".ranking .text")
    page.click("#rank button[name=compare]")
    page.wait_for_selector("#rank .verdict")
    page.click("#tab-score")
    page.fill("#score-items", HOSTILE)
    page.click("#score button[name=send]")
    page.wait_for_selector("#score .tokens")
    assert page.locator("main img, main script").count() == 0
    assert page.title() == "Itemwise"
    visitor.check()


@contextmanager
def fake_server(config: ServerConfig) -> Iterator[str]:
    with running_server(config, FakeScorer) as url:
        wait_until(lambda: get(f"{url}/health").status_code == 200)
        yield url


def test_the_key_is_asked_for_and_kept_in_memory_alone(browser: Browser) -> None:
    config = ServerConfig("org/fake-model", api_key="open sesame")
    with fake_server(config) as url, visit(browser, url) as visitor:
        page = visitor.open(ready=False)
        page.fill("#key", "wrong")
        page.press("#key", "Enter")
        page.wait_for_selector("#key-form:not([hidden])")
        page.fill("#key", "open sesame")
        page.press("#key", "Enter")
        expect(page.locator("#state-text")).to_have_text("org/fake-model")
        page.fill("#rank-items", "w1\nw2")
        page.fill("#rank-query", "w3")
        page.click("#rank button[name=send]")
        page.wait_for_selector(".ranking li")
        page.click("#rank .copies >> text=Copy as curl")
        expect(page.locator("#rank .copies [role=status]")).to_have_text("Copied.")
        copied = page.evaluate("navigator.clipboard.readText()")
        assert "$ITEMWISE_API_KEY" in copied
        assert "open sesame" not in copied
        stored = "{...localStorage}, {...sessionStorage}, document.cookie, location.href"
        assert "sesame" not in page.evaluate(f"JSON.stringify([{stored}])")
        page.reload()
        page.wait_for_selector("#key-form:not([hidden])")
        assert page.input_value("#key") == ""
        assert visitor.elsewhere == []


def test_copied_commands_give_the_answer_on_the_page(visitor: Visit) -> None:
    page = visitor.open()
    rank(page, "desk 'lamps' $HOME", "\n".join(TITLES))
    shown = texts(page, ".ranking .value")
    for name in ("curl", "Python"):
        page.click(f"#rank .copies >> text=Copy as {name}")
        expect(page.locator("#rank .copies [role=status]")).to_have_text("Copied.")
        text = page.evaluate("navigator.clipboard.readText()").replace("\\\n", "")
        command = shlex.split(text) if name == "curl" else [sys.executable, "-c", text]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        results = json.loads(done.stdout)["results"]
        assert [f"{each['relevance_score']:.4f}" for each in results] == shown
    visitor.check()


# Server


def test_server_shows_what_runs_and_its_load(visitor: Visit) -> None:
    page = visitor.open("server")
    page.wait_for_selector("#server dl")
    info = httpx.get(f"{visitor.url}/server_info").json()
    facts = page.inner_text("#server dl")
    for part in ("itemwise/demo", "prompt-template", "CPU", info["engine"]["cpu_level"], "passed"):
        assert part in facts
    chart = page.locator(".chart").filter(has_text="Scored requests")
    body = {"query": "desk lamps", "documents": TITLES}
    deadline = page.evaluate("Date.now()") + 30_000
    while float(chart.locator("output span").inner_text().replace("-", "0")) == 0:
        httpx.post(f"{visitor.url}/v2/rerank", json=body)
        assert page.evaluate("Date.now()") < deadline
    assert "now" in str(chart.locator("svg").get_attribute("aria-label"))
    visitor.check()


def test_quantiles_and_rates_are_of_the_time_between_two_readings(visitor: Visit) -> None:
    page = visitor.open(ready=False)
    before = 's_bucket{le="1"} 10\ns_bucket{le="2"} 10\ns_bucket{le="+Inf"} 10\nc 5\n'
    after = 's_bucket{le="1"} 10\ns_bucket{le="2"} 14\ns_bucket{le="+Inf"} 14\nc 9\n'
    make = """(() => {
      const [a, b] = given.map((text, i) => ({ at: 2000 * i, samples: it.parseMetrics(text) }));
      const medians = [it.quantile("s", 0.5, a, b), it.quantile("s", 0.5, a, a)];
      return [...medians, it.rate("c", a, b), it.rate("c", b, a)];
    })()"""
    assert run_module(page, "metrics.js", make, [before, after]) == [1.5, None, 2, 0]


# The page as a whole


def test_tabs_work_by_keyboard(visitor: Visit) -> None:
    page = visitor.open()
    page.focus("#tab-rank")
    for key, tab in (
        ("ArrowRight", "decide"),
        ("End", "server"),
        ("ArrowRight", "rank"),
        ("ArrowLeft", "server"),
        ("Home", "rank"),
    ):
        page.keyboard.press(key)
        expect(page.locator(f"#tab-{tab}")).to_be_focused()
        assert [page.locator(f"#{each}").is_visible() for each in TABS] == [
            each == tab for each in TABS
        ]
        assert page.get_attribute(f"#tab-{tab}", "aria-selected") == "true"
    page.keyboard.press("Tab")
    expect(page.locator("#rank-query")).to_be_focused()
    page.keyboard.press("Enter")  # sends the form
    page.wait_for_selector(".ranking li")
    visitor.check()


def fill_every_tab(page: Page) -> None:
    """Gives each tab something to show, an error and a comparison among them."""
    page.click("#tab-score")
    page.click("#score button[name=send]")
    page.wait_for_selector("#score .tokens")
    page.click("#tab-decide")
    page.click("#decide button[name=send]")
    page.wait_for_selector("#decide .decision, #decide .error")
    page.click("#tab-server")
    page.wait_for_selector("#server dl")
    page.click("#tab-rank")
    page.click("#rank button[name=send]")
    page.wait_for_selector(".ranking li")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_no_fault_and_nothing_is_cut_off(
    browser: Browser,
    server: str,
    width: int,
    scheme: Literal["light", "dark"],
) -> None:
    with visit(browser, server, width=width, scheme=scheme) as visitor:
        page = visitor.open()
        fill_every_tab(page)
        for tab in (*TABS, "comparison"):
            if tab == "comparison":
                page.click("#tab-rank")
                page.click("#rank button[name=compare]")
                page.wait_for_selector("#rank .verdict")
            else:
                page.click(f"#tab-{tab}")
            found = Axe().run(page)
            bad = [
                each
                for each in found.response["violations"]
                if each["impact"] in ("serious", "critical")
            ]
            assert not bad, (tab, found.generate_report())
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert visitor.elsewhere == []


def test_axe_sees_a_planted_fault(visitor: Visit) -> None:
    page = visitor.open()
    page.evaluate("document.querySelector('label[for=rank-query]').remove()")
    found = Axe().run(page)
    assert [
        each["id"] for each in found.response["violations"] if each["impact"] == "critical"
    ] == ["label"]


def test_a_request_to_another_host_is_stopped_and_seen(visitor: Visit) -> None:
    """Plants the fault that `Visit.check` is for, and shows that the policy forbids it."""
    page = visitor.open()
    assert (
        page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')")
        == "refused"
    )
    assert visitor.faults
    with pytest.raises(AssertionError):
        visitor.check()
