"""A small shop to try a load test of your own on: customers sign in, look at orders and place some.

    ./run_server --app docs.examples.orders_app:application

It stores nothing, so that each worker process can answer every request: an order follows from its number, and
a token is the customer's name with a signature.
"""

from __future__ import annotations

import hmac
import secrets
from typing import Any

import falcon

#: Orders that exist are numbered from 1 to this.
ORDERS = 1000
#: Prices in cents; what is not here is not sold, and what costs nothing is sold out.
PRICES = {"coffee": 790, "sugar": 149, "tea": 450, "vanilla": 0}

# Made before the workers are forked: what one has signed, all of them know.
_KEY = secrets.token_bytes(32)


def _token(customer: str) -> str:
    return f"{customer}.{hmac.digest(_KEY, customer.encode(), 'sha256').hex()}"


def _signed_in(request: falcon.Request) -> None:
    token = (request.get_header("Authorization") or "").removeprefix("Bearer ")
    if not hmac.compare_digest(token.encode(), _token(token.rpartition(".")[0]).encode()):
        raise falcon.HTTPUnauthorized(title="sign in first", challenges=["Bearer"])


def _field(request: falcon.Request, name: str, kind: type) -> Any:
    content = request.get_media()  # Falcon answers 400 for what is no JSON
    value = content.get(name) if isinstance(content, dict) else None
    if type(value) is not kind:
        raise falcon.HTTPUnprocessableEntity(title=f"{name} has to be a {kind.__name__}")
    return value


class Session:
    """`POST /session`: sign in."""

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        response.media = {"token": _token(_field(request, "customer", str))}


class Order:
    """`GET /orders/N`: one order, or 404."""

    def on_get(self, request: falcon.Request, response: falcon.Response, number: int) -> None:
        _signed_in(request)
        if not 1 <= number <= ORDERS:
            raise falcon.HTTPNotFound(title="no such order")
        response.media = {"number": number, "article": "tea", "quantity": 1 + number % 5}


class Orders:
    """`POST /orders`: place one; 409 if the article is sold out."""

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        _signed_in(request)
        price, quantity = PRICES.get(_field(request, "article", str)), _field(request, "quantity", int)
        if price is None:
            raise falcon.HTTPUnprocessableEntity(title="not sold here")
        if not price:
            raise falcon.HTTPConflict(title="sold out")
        response.status = falcon.HTTP_201
        response.media = {"number": ORDERS + 1, "quantity": quantity, "cents": price * quantity}


application = falcon.App()
application.add_route("/session", Session())
application.add_route("/orders/{number:int}", Order())
application.add_route("/orders", Orders())
