"""A bucket opened as the mover opens it."""

from __future__ import annotations

import pytest

from mountkit.errors import BucketMissing, StoreUnavailable
from mountkit.sources import BucketURL
from mountkit.store import opening
from tests.servers import MotoServer
from tests.store.raw_server import RawServer, answer

pytestmark = pytest.mark.usefixtures("no_aws")


def test_an_opened_bucket_lists_and_counts(moto: MotoServer) -> None:
    store, region = opening.connect(BucketURL("data", endpoint=moto.endpoint), keys=("AKIAX", "s"), budget_s=5)
    assert region == "us-east-1"
    store.list_page(b"none/")
    assert store.statistics().list == 2 and store.budget_s == 5
    store.close()


def test_a_bucket_that_is_not_there_cannot_be_opened(moto: MotoServer) -> None:
    with pytest.raises(BucketMissing):
        opening.connect(BucketURL("nowhere", endpoint=moto.endpoint), keys=("AKIAX", "s"))


def test_the_opening_check_is_soon_given_up_and_can_be_left_out() -> None:
    with RawServer(lambda request: [answer(503, code="SlowDown")]) as server:
        source = BucketURL("data", endpoint=server.endpoint)
        with pytest.raises(StoreUnavailable):
            opening.connect(source, keys=("AKIAX", "s"))
        before = len(server.requests)
        assert before <= 7
        opening.connect(source, check=False, keys=("AKIAX", "s"))
        assert len(server.requests) == before + 1


def test_one_hiccup_of_a_server_is_no_reason_not_to_mount() -> None:
    listing = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
    answers = iter([answer(500, code="InternalError"), answer(200, listing)])
    with RawServer(lambda request: [next(answers) if request.lists else answer(200)]) as server:
        opening.connect(BucketURL("data", endpoint=server.endpoint), keys=("AKIAX", "s"))[0].close()
        assert [request.lists for request in server.requests] == [False, True, True]


def test_a_bucket_whose_region_is_known_need_not_answer() -> None:
    source = BucketURL("data", endpoint="http://127.0.0.1:1")
    store, region = opening.connect(source, check=False, keys=("AKIAX", "s"), region="eu-north-1")
    assert region == "eu-north-1"
    store.close()
