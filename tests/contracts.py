"""A kind of contract that import-linter has not: a list of what may be imported, instead of what may not."""

from __future__ import annotations

import sys
from fnmatch import fnmatchcase
from typing import Any

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class Only(Contract):
    """*package* imports, directly or through others, only *allowed* (patterns) and Python's own library."""

    package = fields.StringField()
    allowed = fields.ListField(subfield=fields.StringField(), required=False, default=[])
    #: Whether the modules below the package are meant too.
    with_modules = fields.BooleanField(required=False, default=True)

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        package: Any = self.package
        allowed: Any = self.allowed
        as_packages = bool(self.with_modules)
        found = graph.find_upstream_modules(package, as_package=as_packages)
        wrong = {
            name
            for name in found
            if name.partition(".")[0] not in sys.stdlib_module_names
            and not any(fnmatchcase(name, pattern) for pattern in allowed)
        }
        chains = [graph.find_shortest_chain(package, name, as_packages=as_packages) for name in sorted(wrong)]
        return ContractCheck(kept=not wrong, metadata={"chains": chains})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for chain in check.metadata["chains"]:
            output.print_error(" -> ".join(chain))
