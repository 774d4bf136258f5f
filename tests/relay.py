"""A door before a server, which a test may shut: `python relay.py HOST:PORT HOST:PORT` passes on what comes to the first
address. Once it is killed, connections are refused; the server behind it keeps what it has.
"""

import asyncio
import sys
from functools import partial


async def pass_on(host: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    behind, to_behind = await asyncio.open_connection(host, port)
    await asyncio.gather(copy(reader, to_behind), copy(behind, writer))


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def main(listens: str, behind: str) -> None:
    host, port = listens.split(":")
    to_host, to_port = behind.split(":")
    server = await asyncio.start_server(partial(pass_on, to_host, int(to_port)), host, int(port))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
