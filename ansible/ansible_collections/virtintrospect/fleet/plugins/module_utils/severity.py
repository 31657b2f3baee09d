# Copyright: the virtintrospect project
# GNU Lesser General Public License v2.1 or later (see LICENSE), which allows use under the
# GNU General Public License v3.0+, too (https://www.gnu.org/licenses/gpl-3.0.txt)
"""Severities of findings."""

from __future__ import annotations

#: From the least to the worst.
SEVERITIES = ["info", "low", "medium", "high", "critical"]


def rank(severity):
    """How bad it is: a number; what is not known counts as the worst."""
    return SEVERITIES.index(severity) if severity in SEVERITIES else len(SEVERITIES)


def count(findings):
    """How many findings there are of each severity."""
    return {
        severity: sum(1 for finding in findings if finding.get("severity") == severity)
        for severity in SEVERITIES
    }
