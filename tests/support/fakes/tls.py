"""A TLS terminator in front of a real server, and the certificates of an authority of its own.

It accepts TLS as the servers do: Redis from the first byte, PostgreSQL after an SSLRequest. The
embedded servers are built without TLS.
"""

import asyncio
import datetime as dt
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOST = "127.0.0.1"
SSL_REQUEST = bytes.fromhex("0000000804d2162f")
START_S = 10.0
_CHUNK_BYTES = 65_536


class Authority:
    """A certificate authority; ``path`` is the file with its certificate."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.path = folder / f"{name}.pem"
        certificate = (
            self._builder(self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def server(self, address: str) -> ssl.SSLContext:
        """Return the context of a server with a certificate for one IP address."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)])
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        certificate = (
            self._builder(subject, key)
            .add_extension(names, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        path = self._folder / f"server-{address}-{self.path.name}"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(path)
        return context

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
        )


class Terminator:
    """Forwards decrypted bytes to a port of loopback; ``seen`` counts TLS connections.

    A changed ``target_port`` applies to new connections, as a changed address of a name does.
    Without a context it forwards bytes as they are.
    """

    def __init__(
        self, target_port: int, context: ssl.SSLContext | None, *, is_postgres: bool
    ) -> None:
        self.port = 0
        self.seen = 0
        self.target_port = target_port
        self._context = context
        self._is_postgres = is_postgres

    async def run(self, started: threading.Event, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set."""
        server = await asyncio.start_server(
            self._handle, HOST, 0, ssl=None if self._is_postgres else self._context
        )
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        async with server:
            await stop.wait()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._is_postgres:
                if await reader.readexactly(len(SSL_REQUEST)) != SSL_REQUEST:
                    return  # as a server with hostssl only: nothing without TLS
                writer.write(b"S")
                assert self._context is not None
                await writer.start_tls(self._context)
            self.seen += 1
            target_reader, target_writer = await asyncio.open_connection(HOST, self.target_port)
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(_forward(reader, target_writer))
                    tasks.create_task(_forward(target_reader, writer))
            finally:
                target_writer.close()
        except (OSError, asyncio.IncompleteReadError, ssl.SSLError, ExceptionGroup):
            pass  # the peer sees its end of the connection close
        finally:
            writer.close()


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
    writer.close()


@contextmanager
def terminating(
    target_port: int, context: ssl.SSLContext | None, *, is_postgres: bool = False
) -> Iterator[Terminator]:
    """Run a terminator in a thread of its own until the end of the block."""
    terminator = Terminator(target_port, context, is_postgres=is_postgres)
    started = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    def serve() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(terminator.run(started, stop))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert started.wait(START_S), "the terminator does not listen"
        yield terminator
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(START_S)
