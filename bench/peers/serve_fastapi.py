"""What a team writes in an afternoon: a FastAPI route around onnxruntime, on uvicorn."""

from __future__ import annotations

import sys

import numpy as np
import uvicorn
from fastapi import FastAPI
from network import OnnxNetwork, answer
from pydantic import BaseModel


class Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class Request(BaseModel):
    inputs: list[Tensor]


network = OnnxNetwork(sys.argv[1])
app = FastAPI()


@app.post("/v2/models/tiny/infer")
async def infer(request: Request) -> dict[str, object]:
    tensor = request.inputs[0]
    return answer(network(np.array(tensor.data, np.float32).reshape(tensor.shape)))


if __name__ == "__main__":
    uvicorn.run(
        app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", loop="uvloop",
        http="httptools", access_log=False,
    )  # fmt: skip
