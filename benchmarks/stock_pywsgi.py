"""The reference: stock pywsgi with our application, as its documentation says. Argument: the port."""

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402 - monkey patching comes first

from gevent.pywsgi import WSGIServer  # noqa: E402

from app.wsgi import application  # noqa: E402

WSGIServer(("127.0.0.1", int(sys.argv[1])), application, backlog=4096, log=None).serve_forever()
