"""A client of a worker that shares no code with it: what it finds by reflection and health, and what it is
told when it sends what no coordinator would. Prints one JSON object.

client.py HOST:PORT TOKEN
"""

import json
import sys

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

SERVICE = "nashflock.v1.ExpertService"
PATIENCE_S = 20

address, token = sys.argv[1:]
channel = grpc.insecure_channel(address)
of_the_run = (("nashflock-run-token-bin", token.encode()),)


def told(call):
    """The status code and sentence of a call that has to fail."""
    try:
        answers = call()
        return {"code": "OK", "answers": len(list(answers)) if hasattr(answers, "__iter__") else 1}
    except grpc.RpcError as error:
        return {"code": error.code().name, "details": error.details()}


def health(service):
    request = health_pb2.HealthCheckRequest(service=service)
    reply = health_pb2_grpc.HealthStub(channel).Check(request, timeout=PATIENCE_S)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)


database = ProtoReflectionDescriptorDatabase(channel)
pool = DescriptorPool(database)
service = pool.FindServiceByName(SERVICE)


def unary(method, request, metadata):
    """Calls a method whose types are only known by reflection."""
    found = service.methods_by_name[method]
    answer = message_factory.GetMessageClass(found.output_type)
    call = channel.unary_unary(
        f"/{SERVICE}/{method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=answer.FromString,
    )
    message = json_format.ParseDict(request, message_factory.GetMessageClass(found.input_type)())
    return call(message, timeout=PATIENCE_S, metadata=metadata)


def raw(method, payload, metadata=of_the_run):
    """Sends these bytes as the one message of a stream."""
    call = channel.stream_stream(
        f"/{SERVICE}/{method}",
        request_serializer=lambda payload: payload,
        response_deserializer=lambda payload: payload,
    )
    return list(call(iter([payload]), timeout=PATIENCE_S, metadata=metadata))


def orders(request):
    """The replies to one order, as their fields."""
    found = service.methods_by_name["Compute"]
    message = json_format.ParseDict(request, message_factory.GetMessageClass(found.input_type)())
    reply = message_factory.GetMessageClass(found.output_type)
    return [
        json_format.MessageToDict(reply.FromString(payload))
        for payload in raw("Compute", message.SerializeToString())
    ]


print(
    json.dumps(
        {
            "services": sorted(database.get_services()),
            "methods": sorted(service.methods_by_name),
            "health": {name: health(name) for name in ["", SERVICE]},
            "health_of_nobody": told(lambda: health("nobody")),
            "status": json_format.MessageToDict(unary("Status", {}, of_the_run)),
            "without_token": told(lambda: unary("Status", {}, None)),
            "other_token": told(
                lambda: unary("Status", {}, (("nashflock-run-token-bin", b"another"),))
            ),
            "garbage": told(lambda: raw("Compute", b"\xff" * 64)),
            "garbage_shard": told(lambda: raw("LoadShard", b"\xff" * 64)),
            "too_long": told(lambda: raw("Compute", b"\0" * (3 << 20))),
            "no_such_method": told(lambda: raw("Guess", b"")),
            "unsealed_order": orders({"step": 1, "width": 64}),
        }
    )
)
