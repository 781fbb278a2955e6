"""The messages of `inference.GRPCInferenceService`: their layout as a table, tensors in and out.

Rules:
    * Field names and numbers are facts of the protocol and never change.
    * The message types live in a descriptor pool of their own, so a client library that brings the
      same names can live in the same process.
    * The layout is flat: on the wire the nesting of type names leaves no trace.  Fields that this
      server neither reads nor fills are left out; a parser skips them.

What a message means is decided in `grpc`.  The protobuf package is imported on the first use.

Source: github.com/kserve/open-inference-protocol (open_inference_grpc.proto);
github.com/triton-inference-server/common/blob/main/protobuf (grpc_service.proto,
model_config.proto) for configuration, statistics, the repository and streams.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np

from edge_agent.runtime import Array, Tensors, datatype_of
from edge_agent.serve import tensors
from edge_agent.serve.errors import BadRequest
from edge_agent.serve.oip import MAX_ID_CHARS
from edge_agent.wire.manifest import TensorSpec

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import DescriptorProto
    from google.protobuf.message import Message

PACKAGE: Final = "inference"
SERVICE: Final = "inference.GRPCInferenceService"

_TABLE: Final = """
ServerLiveRequest
ServerLiveResponse             live:bool=1
ServerReadyRequest
ServerReadyResponse            ready:bool=1
ModelReadyRequest              name:string=1 version:string=2
ModelReadyResponse             ready:bool=1
ServerMetadataRequest
ServerMetadataResponse         name:string=1 version:string=2 extensions:*string=3
ModelMetadataRequest           name:string=1 version:string=2
ModelMetadataResponse          name:string=1 versions:*string=2 platform:string=3
                               inputs:*TensorMetadata=4 outputs:*TensorMetadata=5
TensorMetadata                 name:string=1 datatype:string=2 shape:*int64=3

InferParameter                 bool_param:?bool=1 int64_param:?int64=2 string_param:?string=3
                               double_param:?double=4 uint64_param:?uint64=5
InferTensorContents            bool_contents:*bool=1 int_contents:*int32=2 int64_contents:*int64=3
                               uint_contents:*uint32=4 uint64_contents:*uint64=5
                               fp32_contents:*float=6 fp64_contents:*double=7
                               bytes_contents:*bytes=8
InferInputTensor               name:string=1 datatype:string=2 shape:*int64=3
                               parameters:%InferParameter=4 contents:InferTensorContents=5
InferRequestedOutputTensor     name:string=1 parameters:%InferParameter=2
InferOutputTensor              name:string=1 datatype:string=2 shape:*int64=3
ModelInferRequest              model_name:string=1 model_version:string=2 id:string=3
                               parameters:%InferParameter=4 inputs:*InferInputTensor=5
                               outputs:*InferRequestedOutputTensor=6 raw_input_contents:*bytes=7
ModelInferResponse             model_name:string=1 model_version:string=2 id:string=3
                               parameters:%InferParameter=4 outputs:*InferOutputTensor=5
                               raw_output_contents:*bytes=6
ModelStreamInferResponse       error_message:string=1 infer_response:ModelInferResponse=2

ModelConfigRequest             name:string=1 version:string=2
ModelConfigResponse            config:ModelConfig=1
ModelConfig                    name:string=1 platform:string=2 backend:string=17 runtime:string=25
                               version_policy:ModelVersionPolicy=3 max_batch_size:int32=4
                               input:*ModelInput=5 output:*ModelOutput=6
                               instance_group:*ModelInstanceGroup=7
                               default_model_filename:string=8
                               dynamic_batching:ModelDynamicBatching=11
                               parameters:%ModelParameter=14
                               model_transaction_policy:ModelTransactionPolicy=19
ModelVersionPolicy             specific:SpecificVersions=3
SpecificVersions               versions:*int64=1
ModelInput                     name:string=1 data_type:DataType=2 dims:*int64=4
ModelOutput                    name:string=1 data_type:DataType=2 dims:*int64=3
                               label_filename:string=4
ModelInstanceGroup             name:string=1 count:int32=2 kind:InstanceKind=4
ModelDynamicBatching           preferred_batch_size:*int32=1 max_queue_delay_microseconds:uint64=2
                               preserve_ordering:bool=3
ModelParameter                 string_value:string=1
ModelTransactionPolicy         decoupled:bool=1

ModelStatisticsRequest         name:string=1 version:string=2
ModelStatisticsResponse        model_stats:*ModelStatistics=1
ModelStatistics                name:string=1 version:string=2 last_inference:uint64=3
                               inference_count:uint64=4 execution_count:uint64=5
                               inference_stats:InferStatistics=6 batch_stats:*InferBatchStatistics=7
                               memory_usage:*MemoryUsage=8
InferStatistics                success:StatisticDuration=1 fail:StatisticDuration=2
                               queue:StatisticDuration=3 compute_input:StatisticDuration=4
                               compute_infer:StatisticDuration=5 compute_output:StatisticDuration=6
                               cache_hit:StatisticDuration=7 cache_miss:StatisticDuration=8
InferBatchStatistics           batch_size:uint64=1 compute_input:StatisticDuration=2
                               compute_infer:StatisticDuration=3 compute_output:StatisticDuration=4
StatisticDuration              count:uint64=1 ns:uint64=2
MemoryUsage                    type:string=1 id:int64=2 byte_size:uint64=3

RepositoryIndexRequest         repository_name:string=1 ready:bool=2
RepositoryIndexResponse        models:*ModelIndex=1
ModelIndex                     name:string=1 version:string=2 state:string=3 reason:string=4
RepositoryModelLoadRequest     repository_name:string=1 model_name:string=2
RepositoryModelUnloadRequest   repository_name:string=1 model_name:string=2
"""
"""A message per entry, `field:type=number` per field.

`*` is a repeated field, `%` a map from strings, `?` a member of the message's one choice.
"""

_ENUMS: Final = {
    "DataType": (
        "TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64",
        "TYPE_INT8", "TYPE_INT16", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32",
        "TYPE_FP64", "TYPE_STRING", "TYPE_BF16",
    ),
    "InstanceKind": ("KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"),
}  # fmt: skip

_CONTENTS: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}  # fmt: skip
"""Where typed contents of a datatype stand.  FP16 and BF16 have no such field: raw bytes only."""

_SLICE: Final = 16_384
"""Typed values converted at a time: between two slices other threads get their turn."""

ParameterValue = bool | int | float | str | None


@dataclass(frozen=True, slots=True)
class InferCall:
    """A decoded `ModelInferRequest`.

    Attributes:
        outputs: the wanted ones; empty means all.
        parameters: of the request as a whole.
    """

    tensors: Tensors
    id: str
    outputs: tuple[str, ...]
    parameters: dict[str, ParameterValue]


@cache
def message_types() -> dict[str, type[Message]]:
    """All message types by name.

    Raises:
        ImportError: protobuf is not installed.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(
        name="skerry/grpc_service.proto", package=PACKAGE, syntax="proto3"
    )
    for name, values in _ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    message: DescriptorProto | None = None
    for line in filter(str.strip, _TABLE.splitlines()):
        words = line.split()
        if not line[0].isspace():
            message = file.message_type.add(name=words.pop(0))
        for word in words:
            _add_field(message, word)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        message.name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"{PACKAGE}.{message.name}")
        )
        for message in file.message_type
    }


def decode(request: Message, inputs: Sequence[TensorSpec]) -> InferCall:
    """The tensors and wishes of a `ModelInferRequest`.

    Args:
        inputs: the model's interface; what the request announces is held to it before any data is
            looked at.

    Raises:
        BadRequest: its contents do not fit what it says of them.
        InputError: it announces what the model does not take.
    """
    if len(request.id) > MAX_ID_CHARS:
        raise BadRequest(f"id: longer than {MAX_ID_CHARS} characters")
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise BadRequest(f"{len(raw)} raw_input_contents for {len(request.inputs)} inputs")
    announced = []
    for item in request.inputs:
        if "shared_memory_region" in item.parameters:
            raise BadRequest(f"input {item.name!r}: shared memory is not supported")
        if raw and item.HasField("contents"):
            raise BadRequest(f"input {item.name!r} has contents beside raw_input_contents")
        announced.append((item.name, item.datatype, tuple(item.shape)))
    tensors.check_announced(announced, inputs)
    arrays: Tensors = {}
    for index, (name, datatype, shape) in enumerate(announced):
        if raw:
            arrays[name] = tensors.from_bytes(name, datatype, shape, memoryview(raw[index]))
        else:
            contents = request.inputs[index].contents
            arrays[name] = _from_contents(name, datatype, shape, contents)
    wanted: dict[str, None] = {}
    for output in request.outputs:
        if "classification" in output.parameters:
            raise BadRequest("the classification extension is not supported")
        if "shared_memory_region" in output.parameters:
            raise BadRequest(f"output {output.name!r}: shared memory is not supported")
        if output.name in wanted:
            raise BadRequest(f"output {output.name!r} is wanted twice")
        wanted[output.name] = None
    return InferCall(
        arrays,
        request.id,
        tuple(wanted),
        {name: parameter_value(value) for name, value in request.parameters.items()},
    )


def fill(
    response: Message, outputs: Tensors, wanted: Sequence[str], specs: Sequence[TensorSpec]
) -> None:
    """Write the wanted `outputs` into a `ModelInferResponse`.

    Raises:
        BadRequest: an output is wanted that the model does not have.
    """
    datatypes = {spec.name: spec.datatype for spec in specs}
    for name in wanted or tuple(outputs):
        array = outputs.get(name)
        if array is None:
            raise BadRequest(f"unknown output {name[:80]!r}; there are {', '.join(outputs)}")
        datatype = datatypes.get(name) or datatype_of(array.dtype)
        response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        response.raw_output_contents.append(tensors.to_bytes(array, datatype))


def parameter_value(parameter: Message) -> ParameterValue:
    """The value of an `InferParameter`; None where it has none."""
    chosen: str | None = parameter.WhichOneof("choice")
    value: ParameterValue = None if chosen is None else getattr(parameter, chosen)
    return value


def _from_contents(name: str, datatype: str, shape: tuple[int, ...], contents: Message) -> Array:
    dtype = tensors.dtype_of(name, datatype)
    field = _CONTENTS.get(datatype)
    if field is None:
        raise BadRequest(f"input {name!r}: {datatype} travels in raw_input_contents only")
    for descriptor, _ in contents.ListFields():
        if descriptor.name != field:
            raise BadRequest(f"input {name!r}: {datatype} stands in {field}, not {descriptor.name}")
    values = getattr(contents, field)
    count = len(values)
    if count != math.prod(shape):
        raise BadRequest(f"input {name!r}: {count} values do not make the shape {list(shape)}")
    array = np.empty(count, dtype=dtype)
    try:
        for start in range(0, count, _SLICE):
            # a list of Python numbers, for numpy refuses those that do not fit, as it does in JSON
            array[start : start + _SLICE] = np.array(values[start : start + _SLICE], dtype=dtype)
    except OverflowError as error:
        raise BadRequest(f"input {name!r}: {tensors.first_line(error)}") from None
    return tensors.reshaped(name, array, shape)


def _add_field(message: DescriptorProto, word: str) -> None:
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto

    name, _, rest = word.partition(":")
    kind, _, number = rest.partition("=")
    field = message.field.add(
        name=name, number=int(number), label=FieldDescriptorProto.LABEL_OPTIONAL
    )
    if kind[0] in "*%":
        field.label = FieldDescriptorProto.LABEL_REPEATED
    if kind[0] == "?":
        if not message.oneof_decl:
            message.oneof_decl.add(name="choice")
        field.oneof_index = 0
    if kind[0] == "%":
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add_field(entry, "key:string=1")
        _add_field(entry, f"value:{kind[1:]}=2")
        field.type = FieldDescriptorProto.TYPE_MESSAGE
        field.type_name = f"{message.name}.{entry.name}"
        return
    kind = kind.lstrip("*?")
    if kind in _ENUMS:
        field.type, field.type_name = FieldDescriptorProto.TYPE_ENUM, kind
    elif kind[0].isupper():
        field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, kind
    else:
        field.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
