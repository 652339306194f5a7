"""Takes the layers of the gate out, one by one, and shows that a test fails without each: run it as a script.

Each removal is made in a copy of the packages. The tests named beside it must pass with the layer and fail without it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
AT_ONCE = 2


@dataclass(frozen=True)
class Layer:
    """One layer: where it stands, the text that is it, what stands there without it, and the test that must fail."""

    name: str
    file: str
    there: str
    gone: str
    test: str


LAYERS = (
    Layer(
        "consent is asked before the data is looked at",
        "exporters/gate.py",
        "        if not self._consent():\n            self.refused += 1\n            return None\n",
        "",
        "privacy/test_gate.py::test_without_consent_data_is_not_read",
    ),
    Layer(
        "what goes out is rebuilt from the list",
        "exporters/gate.py",
        "outgoing = rebuild(data, self._target, declared)",
        "outgoing = Outgoing(dict(data.facts), tuple("
        "OutgoingMetric(p.name, '', '', p.kind, ((dict(p.attributes), p.value),)) for p in data.points), data.began, data.now)",
        "sending/test_otlp.py::test_a_run_arrives",
    ),
    Layer(
        "only listed metrics are copied",
        "exporters/rebuild.py",
        "points.get((entry.name, entry.kind), ())",
        "data.points",
        "privacy/test_gate.py::test_timings_go_out_exactly",
    ),
    Layer(
        "only listed attributes are copied",
        "exporters/rebuild.py",
        "    if set(found) - set(rules) or set(rules) - set(found) - set(entry.optional):\n"
        "        return None\n    sendable = {",
        "    sendable: dict[str, Any] = dict(found) if set(found) - set(rules) else {",
        "privacy/test_gate.py::test_what_is_not_listed_has_no_way_out",
    ),
    Layer(
        "only listed facts are copied",
        "exporters/rebuild.py",
        "return Outgoing(sendable_facts(data.facts, target, declared),",
        "return Outgoing(dict(data.facts),",
        "privacy/test_gate.py::test_nothing_of_the_users_own_goes_out",
    ),
    Layer(
        "words outside the vocabulary become other, or stay",
        "exporters/rules.py",
        "    return OTHER if OTHER in rule.values else None",
        "    return value",
        "privacy/test_gate.py::test_coarsening",
    ),
    Layer(
        "readings have three significant digits",
        "exporters/rebuild.py",
        "return value if entry.digits is None else significant(value, entry.digits)",
        "return value",
        "privacy/test_gate.py::test_check_finds_unlisted_parts",
    ),
    Layer(
        "the final bytes are checked",
        "exporters/gate.py",
        "self.fault = self._form.first_fault(body, self._target, yield_gil, declared)",
        "self.fault = None",
        "privacy/test_gate.py::test_the_final_bytes_are_checked_whatever_built_them",
    ),
    Layer(
        "consent is asked before the data is handed on",
        "exporters/gate.py",
        "        if not self._consent():\n            self.refused += 1\n            return []\n",
        "",
        "privacy/test_gate.py::test_consent_is_asked_twice",
    ),
    Layer(
        "only the checked bytes are released",
        "exporters/courier.py",
        "        if self._gate.passes(body, self._yield_gil, head.declared):",
        "        if True:",
        "sending/test_courier.py::test_the_bytes_are_checked_again_before_they_go",
    ),
    Layer(
        "consent is asked before each attempt to send",
        "exporters/courier.py",
        "        if not self._consent():\n            raise _WaitsError(",
        "        if False:\n            raise _WaitsError(",
        "sending/test_courier.py::test_consent_is_asked_with_the_bytes_in_hand",
    ),
    Layer(
        "the transport asks for the release",
        "exporters/courier.py",
        "answered = self._noted(self._transport.where, body)",
        "answered = print",
        "privacy/test_wire.py::test_preview_and_log_equal_arrived_bytes",
    ),
    Layer(
        "what cannot be noted is not sent",
        "exporters/courier.py",
        '            raise _WaitsError(f"nothing was sent, because',
        '            return print\n            raise _WaitsError(f"nothing was sent, because',
        "sending/test_courier.py::test_what_cannot_be_noted_waits",
    ),
    Layer(
        "a run that was once refused stays here",
        "profiler/sending/sender.py",
        "        return not self.is_withdrawn\n",
        "        return self._permits(resolved)\n",
        "privacy/test_consent.py::test_off_in_the_environment_of_the_process",
    ),
    Layer(
        "a run is sent under the choice it began with",
        "profiler/sending/consent.py",
        "return self._permits(resolved) and (self._state is None or state_of(resolved) == self._state)",
        "return self._permits(resolved)",
        "privacy/test_consent.py::test_off_and_on_between_readings_ends_sending",
    ),
    Layer(
        "a change of the choice is dated",
        "profiler/config/file.py",
        "if any(before.get(key, KEYS[key]) != after.get(key, KEYS[key]) for key in DESTINATION):",
        "if False:",
        "privacy/test_consent.py::test_off_and_on_again_in_another_process",
    ),
    Layer(
        "consent is looked at between exports",
        "profiler/session/session.py",
        "self.sampler.each_tick.append(self.sending.consent)",
        "pass",
        "privacy/test_consent.py::test_off_by_hand_counts_at_next_reading",
    ),
    Layer(
        "sync=False in the file",
        "profiler/config/schema.py",
        'CONSENT = ("sync", "crash_reports", "usage", "local", "lines")',
        'CONSENT = ("crash_reports", "usage", "local", "lines")',
        "sending/test_otlp.py::test_off_in_file_wins",
    ),
    Layer(
        "an off for lines is final",
        "profiler/config/schema.py",
        'CONSENT = ("sync", "crash_reports", "usage", "local", "lines")',
        'CONSENT = ("sync", "crash_reports", "usage", "local")',
        "measure/test_lines.py::TestRun::test_off_in_the_file_is_final",
    ),
    Layer(
        "a run of a package samples no lines",
        "profiler/session/session.py",
        "samples_lines=resolved.settings.lines and self._app is None",
        "samples_lines=resolved.settings.lines",
        "measure/test_lines.py::TestRun::test_packages_that_embed_us_get_none",
    ),
    Layer(
        "an explicit none wins",
        "profiler/config/resolve.py",
        'for key in (*CONSENT, "exporter"):',
        "for key in CONSENT:",
        "sending/test_otlp.py::test_none_in_file_wins",
    ),
    Layer(
        "DO_NOT_TRACK",
        "profiler/config/environment.py",
        "if spelt in DO_NOT_TRACK and",
        "if False and",
        "sending/test_otlp.py::test_any_off_wins",
    ),
    Layer(
        "OTEL_SDK_DISABLED",
        "profiler/config/environment.py",
        'yield "sync", ResolvedValue(False, "environment", "OTEL_SDK_DISABLED")',
        "pass",
        "sending/test_otlp.py::test_any_off_wins",
    ),
    Layer(
        "a variable that cannot be understood means off",
        "profiler/config/environment.py",
        'yield "sync", ResolvedValue(False, "environment", variable)',
        "pass",
        "privacy/test_settings.py::test_unknown_environment_value_means_off",
    ),
    Layer(
        "a file that cannot be read means off",
        "profiler/config/resolve.py",
        'return [("sync", ResolvedValue(False, "unreadable file", str(error)))], None',
        "return [], None",
        "privacy/test_settings.py::test_a_file_that_cannot_be_understood_means_off",
    ),
    Layer(
        "reset keeps an opt-out",
        "profiler/config/file.py",
        "_rewrite(offs_of)",
        "_rewrite(lambda content: {})",
        "privacy/test_settings.py::test_every_off_survives_reset",
    ),
    Layer(
        "the exporter is made after the first yes",
        "exporters/courier.py",
        "        self._transport: Transport | None = None\n",
        "        self._transport: Transport | None = make()\n",
        "sending/test_courier.py::test_transport_is_made_only_when_needed",
    ),
    Layer(
        "the half that sends is loaded after the first yes",
        "profiler/session/session.py",
        '        self.state = "running"\n        resolved',
        '        self.state = "running"\n        import exporters.otlp\n        resolved',
        "sending/test_otlp.py::test_none_imports_nothing_of_the_exporters",
    ),
    Layer(
        "headers for another destination stay",
        "profiler/sending/destination.py",
        '_headers(OWN_HEADERS, variables((OWN_HEADERS,)).get(OWN_HEADERS, ""))',
        '_headers(*given.get("HEADERS", ("", "")))',
        "sending/test_otlp.py::test_headers_meant_for_another_destination_stay",
    ),
    Layer(
        "headers that tracers add stay",
        "exporters/transport.py",
        "        if name.lower() in names:\n",
        "        if True:\n",
        "privacy/test_host.py::test_no_header_of_a_tracer_reaches_the_destination",
    ),
    Layer(
        "credentials from ~/.netrc stay",
        "exporters/transport.py",
        "        self._session.auth = _no_auth  #",
        '        self._headers["authorization"] = ""  #',
        "sending/test_otlp.py::test_headers_meant_for_another_destination_stay",
    ),
    Layer(
        "redirects are not followed",
        "exporters/transport.py",
        "allow_redirects=False",
        "allow_redirects=True",
        "sending/test_otlp.py::test_redirect_is_no_delivery",
    ),
    Layer(
        "a host that traces its requests sees none of ours",
        "exporters/transport.py",
        "token = context.attach(untraced)",
        "token = context.attach(context.get_current())",
        "privacy/test_host.py::test_a_host_finds_everything_as_it_left_it",
    ),
    Layer(
        "switching off empties the outbox",
        "profiler/config/file.py",
        "        if is_off(changed):\n            empty_outbox()\n",
        "",
        "sending/test_delivery.py::test_switching_off_empties_and_counts_outbox",
    ),
    Layer(
        "off written by hand empties it at the next look",
        "profiler/sending/flush.py",
        "    if resolved.off_in_file:\n        empty_outbox()\n    if not",
        "    if not",
        "sending/test_delivery.py::test_off_by_hand_empties_outbox",
    ),
    Layer(
        "what was made for another destination stays",
        "profiler/sending/dispatch.py",
        "return head.key == key and is_declared and (",
        "return is_declared and (",
        "sending/test_delivery.py::test_entries_for_another_destination_wait",
    ),
    Layer(
        "an entry cannot vouch for its own address",
        "profiler/sending/flush.py",
        "(adopt or (same and key.decided == resolved.decided))",
        "(adopt or key.decided == resolved.decided)",
        "privacy/test_folder.py::test_entry_goes_nowhere_by_its_own_word",
    ),
    Layer(
        "what the user does not want of a package waits, or goes",
        "profiler/sending/dispatch.py",
        'and (head.what == "run" or not resolve().unwanted(head.what))',
        "",
        "embedding/test_usage.py::test_usage_off_stops_waiting_summary",
    ),
    Layer(
        "a package's wish does not outweigh its user's choice",
        "profiler/config/resolve.py",
        "        if not raises and not overruled:\n            yield",
        "        if True:\n            yield",
        "embedding/test_usage.py::test_user_choice_outweighs_package_wish",
    ),
    Layer(
        "in CI and tests nothing goes where a package has chosen",
        "profiler/config/resolve.py",
        'if values["exporter"].source == "host" and (signal := not_for_hosts()):',
        'if values["exporter"].source == "host" and (signal := ""):',
        "embedding/test_usage.py::test_any_off_of_the_users_wins",
    ),
    Layer(
        "the user is told before anything goes where a package has chosen",
        "profiler/sending/notices.py",
        "    return shown_at is not None and shown_at * 1e9 <= app.began_ns",
        "    return True",
        "embedding/test_usage.py::test_first_time_shows_notice_then_sends_summary",
    ),
    Layer(
        "the user's headers stay with the user's collector",
        "profiler/sending/destination.py",
        "{} if is_hosts else _headers(OWN_HEADERS",
        "_headers(OWN_HEADERS",
        "embedding/test_usage.py::test_users_headers_stay_with_users_collector",
    ),
    Layer(
        "what was counted under another choice stays",
        "profiler/storage/usage_ledger.py",
        "if parts and all(part.choice == choice for part in parts):",
        "if parts:",
        "embedding/test_usage.py::test_counts_of_another_choice_stay_here",
    ),
    Layer(
        "of a crash only the package's own places are noted",
        "profiler/embedding/crash.py",
        " and own.has(module, path):",
        ":",
        "embedding/test_command_lines.py::test_users_plugin_is_named_nowhere",
    ),
    Layer(
        "and of those only what is in its files",
        "profiler/embedding/crash.py",
        " and code.co_filename == path",
        "",
        "embedding/test_crash.py::test_names_in_exec_code_are_not_sent",
    ),
    Layer(
        "a crash report is rebuilt from the list",
        "exporters/crash_payload.py",
        "collapsed(coarse(rules[FRAMES], frame) for",
        "collapsed(frame for",
        "embedding/test_crash.py::test_it_is_rebuilt_from_the_list",
    ),
    Layer(
        "an envelope is checked before it is kept to be sent",
        "profiler/embedding/crash_delivery.py",
        "    if not gate.passes(body, declared=declared):\n        return None, gate.reason\n",
        "",
        "embedding/test_crash.py::test_faulty_envelope_does_not_enter_outbox",
    ),
    Layer(
        "the program's own Sentry is left as it is",
        "profiler/embedding/crash.py",
        "            continuous_profiler._scheduler = None\n        yield",
        "            pass\n        yield",
        "embedding/test_crash.py::test_programs_own_sentry_is_untouched",
    ),
    Layer(
        "requests of ours are not in the traces of the program's own Sentry",
        "exporters/transport.py",
        "return contextvars.Context().run(self._unseen, body, query)",
        "return self._unseen(body, query)",
        "embedding/test_crash.py::test_programs_own_sentry_is_untouched",
    ),
    Layer(
        "events that may have arrived are not sent again",
        "exporters/ga.py",
        'if answer.verdict == "later" and answer.arrived:',
        "if False:",
        "sending/test_ga.py::test_after_any_answer_nothing_is_sent_again",
    ),
    # ---- the folder may be hostile ----
    Layer(
        "what others may write is as if it were not there",
        "profiler/config/place.py",
        "if status.st_mode & WRITABLE_BY_OTHERS:",
        "if False:",
        "privacy/test_folder.py::test_file_that_others_may_write_means_off",
    ),
    Layer(
        "no link below the base is followed to a folder",
        "profiler/config/place.py",
        "os.open(target, INTO_FOLDER | NO_LINK, **where)",
        "os.open(target, INTO_FOLDER, **where)",
        "privacy/test_folder.py::test_switching_off_follows_no_link",
    ),
    Layer(
        "no link is followed to a file",
        "profiler/config/folder.py",
        "PLAIN = NO_LINK | ",
        "PLAIN = ",
        "privacy/test_folder.py::test_odd_file_at_our_name_deletes_nothing",
    ),
    Layer(
        "only names of our own form are removed",
        "exporters/outbox_folder.py",
        r're.compile(r"[0-9a-f]{16}\.part")',
        're.compile(".*")',
        "sending/test_outbox.py::test_old_unfinished_file_is_removed",
    ),
    Layer(
        "a file is read only up to its bound",
        "profiler/config/folder.py",
        "if status.st_size > most:",
        "if False:",
        "privacy/test_folder.py::test_huge_file_is_not_read",
    ),
    Layer(
        "an entry is unpacked only up to its bound",
        "exporters/entry.py",
        "unzip.decompress(packed, most + 1)",
        "unzip.decompress(packed)",
        "privacy/test_folder.py::test_bomb_in_the_outbox_is_not_unpacked",
    ),
    Layer(
        "an entry cannot vouch for its own declarations",
        "profiler/sending/dispatch.py",
        "is_declared = declared is None or package_of(head.declared) in declared",
        "is_declared = True",
        "privacy/test_folder.py::test_undeclared_names_wait_for_the_users_word",
    ),
    # ---- the address ----
    Layer(
        "a part of a path that may be a token is not shown",
        "profiler/config/address.py",
        "segment if SHOWN.fullmatch(segment) or not segment else HIDDEN",
        "segment",
        "sending/test_destinations.py::test_secrets_of_a_path_are_not_shown",
    ),
    Layer(
        "no proxy gets what is for this machine",
        "profiler/config/environment.py",
        "address.is_here or proxy_bypass(",
        "proxy_bypass(",
        "sending/test_destinations.py::test_no_proxy_for_this_machine",
    ),
    Layer(
        "the environment adds no certificates to trust",
        "exporters/transport.py",
        "self._session.trust_env = False",
        "self._session.trust_env = True",
        "sending/test_tls.py::test_environment_changes_no_trust",
    ),
    Layer(
        "keys of a connection are written nowhere",
        "exporters/transport.py",
        'super().init_poolmanager(*args, **{**kwargs, "ssl_context": _tls()})',
        "super().init_poolmanager(*args, **kwargs)",
        "sending/test_tls.py::test_environment_changes_no_trust",
    ),
    # ---- the last check ----
    Layer(
        "the bytes are those that the list makes",
        "exporters/payload.py",
        "if encode(rebuild(data, target, declared)) == body else",
        "if True else",
        "privacy/test_bounds.py::test_check_lets_no_other_bytes_through",
    ),
    Layer(
        "an envelope has one meaning",
        "exporters/crash_payload.py",
        'if envelope(report, header["dsn"]) == body else',
        "if True else",
        "privacy/test_bounds.py::test_envelope_has_no_second_meaning",
    ),
    Layer(
        "Google's events have one meaning",
        "exporters/ga_payload.py",
        "if _again(request) == body else",
        "if True else",
        "sending/test_ga.py::test_own_check_finds_unlisted_events",
    ),
    Layer(
        "a number out of bounds is left out",
        "exporters/rebuild.py",
        "if not is_within(entry, point.value) or",
        "if",
        "privacy/test_bounds.py::test_one_bad_point_is_left_out_alone",
    ),
    Layer(
        "Google learns no exact count",
        "exporters/ga_payload.py",
        "max(number for number in TIMES if number <= max(times, 1))",
        "times",
        "sending/test_ga.py::test_how_often_is_a_class",
    ),
    # ---- what identifies, and consent ----
    Layer(
        "an author gets facts apart",
        "profiler/config/resolve.py",
        "return app is not None and not app.joint_facts and (self.host_chose or exporter is not None)",
        "return False",
        "embedding/test_usage.py::test_author_gets_each_fact_apart",
    ),
    Layer(
        "commands that may be the user's own words are other",
        "profiler/embedding/command_counter.py",
        "return command if command == MAIN or command not in self._learned or is_own(command) else OTHER",
        "return command",
        "embedding/test_command_lines.py::test_commands_made_of_users_files_are_other",
    ),
    Layer(
        "an unknown key near a consent key means off",
        "profiler/config/file.py",
        "    faults += filter(None, (mistyped(key, value) for",
        "    faults += filter(None, ('' for",
        "privacy/test_settings.py::test_mistyped_off_is_off_with_one_warning",
    ),
    Layer(
        "an unknown variable near a consent key means off",
        "profiler/config/environment.py",
        'elif spelt.startswith(OWN.rstrip("_")) and (fault := _mistyped(name)):',
        "elif False and (fault := _mistyped(name)):",
        "privacy/test_settings.py::test_mistyped_variable_is_off",
    ),
    Layer(
        "a notice that nobody can see permits nothing",
        "profiler/sending/notices.py",
        "not folder.has(name) and can_be_seen() and _written(text)",
        "not folder.has(name) and _written(text)",
        "embedding/test_usage.py::test_notice_that_nobody_saw_permits_nothing",
    ),
    Layer(
        "an off needs no lock",
        "profiler/config/file.py",
        "        if not only_off and isinstance(error, filelock.Timeout):",
        "        if isinstance(error, filelock.Timeout):",
        "privacy/test_folder.py::test_off_is_saved_while_the_lock_is_held",
    ),
    Layer(
        "a writer with the lock does not undo an off without it",
        "profiler/config/file.py",
        "is_current = before is None or _stamp(path) == before",
        "is_current = True",
        "privacy/test_folder.py::test_off_survives_writer_with_the_lock",
    ),
    Layer(
        "no text steers a terminal",
        "profiler/records/plain_text.py",
        "return whole if whole.isprintable() else",
        "return whole if True else",
        "storage/test_hostile_logs.py::test_names_reach_no_terminal_unescaped",
    ),
)


def without(layer: Layer, copy: Path) -> bool:
    """Whether the layer's test fails where the layer is gone."""
    path = copy / layer.file
    text = path.read_text("utf-8")
    if text.count(layer.there) != 1:
        raise SystemExit(f"{layer.name}: {layer.file} has its text {text.count(layer.there)} times, not once")
    path.write_text(text.replace(layer.there, layer.gone), "utf-8")
    try:
        return not passes(layer.test.split(), copy)
    finally:
        path.write_text(text, "utf-8")


def passes(tests: list[str], copy: Path, *, show: bool = False) -> bool:
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    others = {name: value for name, value in os.environ.items() if not name.startswith("COV")}  # not of this copy
    environment = {**others, "PYTHONPATH": str(copy)}  # before the packages that are installed
    done = subprocess.run(command, cwd=copy / "tests", capture_output=True, text=True, env=environment)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(tests)} could not be run:\n{done.stdout}{done.stderr}")
    if show and done.returncode:
        print(done.stdout)
    return done.returncode == 0


def removals(layers: Sequence[Layer]) -> list[str]:
    """Take these layers out of a copy, one by one; return the names of those that no test misses."""
    unseen = []
    with tempfile.TemporaryDirectory(prefix="epochmeter-layers-") as name:
        copy = Path(name)
        for part in ("epochmeter", "profiler", "exporters", "tests", "docs"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        if not passes(sorted({test for layer in layers for test in layer.test.split()}), copy, show=True):
            raise SystemExit("the tests do not pass with all layers in place")
        for layer in layers:
            seen = without(layer, copy)
            print(f"{'seen' if seen else 'UNSEEN'}: without '{layer.name}', {layer.test} {'fails' if seen else 'passes'}")
            unseen += [] if seen else [layer.name]
    return unseen


def main() -> int:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        shares = [LAYERS[number::AT_ONCE] for number in range(AT_ONCE)]
        unseen = [name for names in pool.map(removals, shares) for name in names]
    print(f"{len(LAYERS) - len(unseen)} of {len(LAYERS)} removals are seen")
    return 1 if unseen else 0


if __name__ == "__main__":
    sys.exit(main())
