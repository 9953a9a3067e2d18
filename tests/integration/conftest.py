"""Fixtures of the integration tests."""

from tests.support.clients.commands import command, run, settings
from tests.support.clients.viewer import connect, handshake, start_streamer
from tests.support.fakes.aws import aws_environment, secrets_manager
from tests.support.fakes.otlp import collector
from tests.support.fakes.pooler import make_pooler
from tests.support.fakes.proxy import make_proxy
from tests.support.servers.api import start_api
from tests.support.servers.api_process import run_api
from tests.support.servers.system import system
