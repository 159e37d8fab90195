"""The same service in Django: `./run_server --app docs.examples.notify.django_app:application --workers 1`.

A whole project in one file; in yours, the views are all that is needed. Needs `pip install django`, and with
REDIS_URL set `pip install redis`.
"""

from __future__ import annotations

from pathlib import Path

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from .hub import open_hub

hub = open_hub()
PAGE = Path(__file__).with_name("page.html").read_bytes()


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(PAGE)


def stream(request: HttpRequest) -> HttpResponse:
    hub.stream(request.META["parked.defer"], request.headers.get("Last-Event-ID"))
    return HttpResponse()  # Django wants one; the client sees what is sent to the pending response


def poll(request: HttpRequest) -> HttpResponse:
    hub.poll(request.META["parked.defer"], request.GET.get("last"))
    return HttpResponse()


@csrf_exempt
def messages(request: HttpRequest) -> HttpResponse:
    hub.publish(request.body.decode()[:10_000])
    return HttpResponse(status=204)


urlpatterns = [
    path("", page),
    path("stream", stream),
    path("poll", poll),
    path("messages", messages),
]
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="an example needs none")
django.setup()
application = get_wsgi_application()
