"""The operations of a SavedModel, compared with a list of those that are allowed.

A graph is a program, and loading one runs its initialisers. Allowed is what computes on numbers
and on the graph's own variables: nothing in the list reads or writes files, prints, works on text,
looks into tables, or calls Python, another process or machine code that the graph brings.

Every SavedModel has two functions more, which save and restore its variables. TensorFlow does not
call them to load or to ask a network, so the operations that work on checkpoints are allowed there,
as long as nothing else in the graph reaches these functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_ALLOWED = frozenset(
    """
    NoOp Identity IdentityN Const Placeholder PlaceholderV2 PlaceholderWithDefault StopGradient
    PreventGradient Snapshot EnsureShape GuaranteeConst Assert CheckNumerics CheckNumericsV2
    FakeParam DeepCopy ControlTrigger PartitionedCall StatefulPartitionedCall If StatelessIf Case
    StatelessCase While StatelessWhile For Switch Merge Enter Exit NextIteration LoopCond

    VarHandleOp ReadVariableOp AssignVariableOp AssignAddVariableOp AssignSubVariableOp
    VarIsInitializedOp VariableShape DisableCopyOnRead ResourceGather ResourceGatherNd
    ResourceScatterUpdate ResourceScatterAdd ResourceScatterNdUpdate ResourceStridedSliceAssign
    Variable VariableV2 Assign AssignAdd AssignSub IsVariableInitialized

    Cast Bitcast Complex ComplexAbs Real Imag Conj Angle
    Add AddV2 AddN AccumulateNV2 Sub Mul MulNoNan Div DivNoNan RealDiv TruncateDiv FloorDiv Mod
    FloorMod TruncateMod Pow Neg Abs Sign Square SquaredDifference Sqrt Rsqrt Reciprocal Inv Exp
    Expm1 Log Log1p Xlogy Xlog1py Xdivy Sin Cos Tan Asin Acos Atan Atan2 Sinh Cosh Tanh Asinh Acosh
    Atanh Erf Erfc Erfinv Ndtri Lgamma Digamma Igamma Igammac Betainc BesselI0 BesselI0e BesselI1
    BesselI1e Ceil Floor Round Rint Maximum Minimum ClipByValue NextAfter IsFinite IsInf IsNan
    Equal NotEqual ApproximateEqual Less LessEqual Greater GreaterEqual LogicalAnd LogicalOr
    LogicalNot BitwiseAnd BitwiseOr BitwiseXor Invert LeftShift RightShift PopulationCount Select
    SelectV2 ToBool

    All Any Sum Mean Prod Max Min EuclideanNorm ArgMax ArgMin Cumsum Cumprod CumulativeLogsumexp
    L2Loss TopK TopKV2 InTopK InTopKV2 NthElement ApproxTopK Bincount DenseBincount Bucketize
    HistogramFixedWidth SegmentSum SegmentSumV2 SegmentMean SegmentMax SegmentMaxV2 SegmentMin
    SegmentMinV2 SegmentProd SegmentProdV2 UnsortedSegmentSum UnsortedSegmentMax UnsortedSegmentMin
    UnsortedSegmentProd

    MatMul BatchMatMul BatchMatMulV2 BatchMatMulV3 Einsum Cross Cholesky MatrixInverse
    MatrixDeterminant LogMatrixDeterminant MatrixSolve MatrixTriangularSolve MatrixSolveLs Qr Svd
    SelfAdjointEigV2 Eig Lu MatrixBandPart Diag DiagPart MatrixDiag MatrixDiagV2 MatrixDiagV3
    MatrixDiagPart MatrixDiagPartV2 MatrixDiagPartV3 MatrixSetDiag MatrixSetDiagV2 MatrixSetDiagV3
    TridiagonalMatMul TridiagonalSolve

    Conv Conv2D Conv3D DepthwiseConv2dNative Conv2DBackpropInput Conv2DBackpropInputV2
    Conv3DBackpropInput Conv3DBackpropInputV2 FusedPadConv2D FusedResizeAndPadConv2D Dilation2D
    BiasAdd BiasAddV1 AvgPool AvgPool3D MaxPool MaxPoolV2 MaxPool3D MaxPoolWithArgmax
    FractionalAvgPool FractionalMaxPool FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3
    BatchNormWithGlobalNormalization LRN Softmax LogSoftmax Relu Relu6 LeakyRelu Elu Selu Sigmoid
    Softplus Softsign SoftmaxCrossEntropyWithLogits SparseSoftmaxCrossEntropyWithLogits CudnnRNN
    CudnnRNNV2 CudnnRNNV3 LSTMBlockCell BlockLSTM BlockLSTMV2 GRUBlockCell
    FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVars FakeQuantWithMinMaxVarsPerChannel Dequantize
    QuantizeV2 QuantizeAndDequantize QuantizeAndDequantizeV2 QuantizeAndDequantizeV3
    QuantizeAndDequantizeV4

    ResizeBilinear ResizeNearestNeighbor ResizeBicubic ResizeArea ScaleAndTranslate CropAndResize
    ImageProjectiveTransformV2 ImageProjectiveTransformV3 ExtractImagePatches ExtractVolumePatches
    ExtractGlimpse ExtractGlimpseV2 AdjustContrast AdjustContrastv2 AdjustHue AdjustSaturation
    RGBToHSV HSVToRGB FFT FFT2D FFT3D IFFT IFFT2D IFFT3D RFFT RFFT2D RFFT3D IRFFT IRFFT2D IRFFT3D

    Shape ShapeN Size Rank Reshape Squeeze ExpandDims Transpose ConjugateTranspose Concat ConcatV2
    ConcatOffset ParallelConcat Pack Unpack Split SplitV Slice StridedSlice StridedSliceGrad
    TensorStridedSliceUpdate Gather GatherV2 GatherNd ScatterNd TensorScatterUpdate TensorScatterAdd
    TensorScatterSub TensorScatterMax TensorScatterMin Tile Pad PadV2 MirrorPad Reverse ReverseV2
    ReverseSequence Roll Fill Empty OnesLike ZerosLike Range LinSpace OneHot Where Unique UniqueV2
    UniqueWithCounts UniqueWithCountsV2 ListDiff InvertPermutation UnravelIndex BroadcastTo
    BroadcastArgs BroadcastGradientArgs DynamicPartition DynamicStitch ParallelDynamicStitch
    DepthToSpace SpaceToDepth BatchToSpace BatchToSpaceND SpaceToBatch SpaceToBatchND
    DataFormatDimMap DataFormatVecPermute LowerBound UpperBound

    RandomUniform RandomUniformInt RandomStandardNormal TruncatedNormal
    ParameterizedTruncatedNormal RandomShuffle RandomGamma RandomPoissonV2 Multinomial
    StatelessRandomUniform StatelessRandomUniformV2 StatelessRandomUniformInt
    StatelessRandomUniformIntV2 StatelessRandomUniformFullInt StatelessRandomUniformFullIntV2
    StatelessRandomNormal StatelessRandomNormalV2 StatelessTruncatedNormal
    StatelessTruncatedNormalV2 StatelessMultinomial StatelessShuffle StatelessRandomGetAlg
    StatelessRandomGetKeyCounter StatelessRandomGetKeyCounterAlg StatefulUniform
    StatefulUniformInt StatefulUniformFullInt StatefulStandardNormalV2 StatefulTruncatedNormal
    RngSkip RngReadAndSkip

    EmptyTensorList TensorListReserve TensorListResize TensorListLength TensorListElementShape
    TensorListFromTensor TensorListStack TensorListGetItem TensorListSetItem TensorListPushBack
    TensorListPopBack TensorListGather TensorListScatter TensorListScatterV2
    TensorListScatterIntoExistingList TensorListConcat TensorListConcatV2 TensorListSplit
    TensorArrayV3 TensorArrayReadV3 TensorArrayWriteV3 TensorArrayGatherV3 TensorArrayScatterV3
    TensorArrayConcatV3 TensorArraySplitV3 TensorArraySizeV3 TensorArrayCloseV3
    """.split()
)
# What saving and restoring variables takes besides. (TensorFlow 1 restores by the graph's own.)
_OF_SAVING = frozenset(
    "SaveV2 MergeV2Checkpoints ShardedFilename StaticRegexFullMatch StringJoin".split()
)
_OF_RESTORING = frozenset(["RestoreV2"])


def refused(graph: Any) -> str:
    """What of a `MetaGraphDef` is not allowed: `the operation ReadFile`; empty for nothing."""
    library = graph.graph_def.library.function
    functions = {function.signature.name: list(function.node_def) for function in library}
    nodes = {node.name: node for node in graph.graph_def.node}
    asked = _with_inputs(nodes, _asked_for(graph))
    restoring = _with_inputs(nodes, [graph.saver_def.restore_op_name]) - asked
    saving = _with_inputs(nodes, [graph.saver_def.save_tensor_name]) - asked - restoring
    # Functions that only saving and restoring may reach, and what they may hold.
    apart = {name: _OF_SAVING for key in saving for name in _called(nodes[key], functions)}
    apart |= {name: _OF_RESTORING for key in restoring for name in _called(nodes[key], functions)}
    for name, content in {**functions, "": list(nodes.values())}.items():
        for node in content:
            more = apart.get(name, frozenset())
            of_saver = not name and node.name in saving | restoring
            if of_saver:
                more = _OF_SAVING if node.name in saving else _OF_RESTORING
            if node.op not in _ALLOWED | more and node.op not in functions:
                return f"the operation {node.op}"
            if not of_saver and any(called in apart for called in _called(node, functions)):
                return f"a call of what saves its variables ('{node.name}')"
    # What can be called after loading.
    if any(name in apart for name in graph.object_graph_def.concrete_functions):
        return "a function that is also what saves its variables"
    return ""


def _asked_for(graph: Any) -> Iterator[str]:
    """The nodes that give the outputs of signatures, and those that initialise (TensorFlow 1)."""
    for signature in graph.signature_def.values():
        yield from (tensor.name for tensor in signature.outputs.values())
    for key in ("saved_model_main_op", "legacy_init_op", "main_op", "table_initializer"):
        yield from graph.collection_def[key].node_list.value if key in graph.collection_def else ()


def _with_inputs(nodes: dict[str, Any], wanted: Iterable[str]) -> set[str]:
    """These nodes and all that they depend on; names of tensors and of control inputs serve too."""
    found: set[str] = set()
    waiting = [*wanted]
    while waiting:
        name = waiting.pop().lstrip("^").partition(":")[0]
        if name in nodes and name not in found:
            found.add(name)
            waiting += nodes[name].input
    return found


def _called(node: Any, functions: Mapping[str, Any]) -> Iterator[str]:
    """The functions that a node names."""
    if node.op in functions:
        yield node.op
    for value in node.attr.values():
        for call in [value.func, *value.list.func]:
            if call.name:
                yield call.name
