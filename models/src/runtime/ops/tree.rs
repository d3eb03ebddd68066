//! ai.onnx.ml `TreeEnsembleRegressor` and `TreeEnsembleClassifier`, operator sets 1 to 3.
//!
//! Owns their attributes, and what follows the walk: averages, base values, post-transforms, labels, as onnxruntime has them where the
//! specification is silent. Never walks: `forest` does.
//!
//! Limits: [`TARGETS_MAX`]. The operator `TreeEnsemble` of operator set 5 is another and not here.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::forest::{Aggregate, Forest, Mode, RawNode, RawWeight, Totals};
use super::post::{PostTransform, logistic};
use super::{Parsed, numbers, rows_of};

/// Most targets or classes; each costs some bytes per row.
const TARGETS_MAX: usize = 4_096;

/// What follows the walk.
#[derive(Debug)]
enum Finish {
    Regression { average: bool },
    Classes(Classes),
}

#[derive(Debug)]
struct Classes {
    labels: Labels,
    binary: Binary,
}

#[derive(Debug)]
enum Labels {
    Integers(Vec<i64>),
    Strings(Vec<String>),
}

/// How two classes are scored when the leaves speak of one only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Binary {
    /// The leaves speak of both, or there are more.
    No,
    /// No weight is negative: a sum of probabilities of the second class.
    Probability,
    /// A margin: positive for the second class.
    Margin,
}

#[derive(Debug)]
struct Ensemble {
    forest: Forest,
    aggregate: Aggregate,
    base: Vec<f64>,
    post: PostTransform,
    finish: Finish,
}

/// The operator. Two are equal when they are the same one.
#[derive(Debug, Clone)]
struct TreeEnsemble(Arc<Ensemble>);

impl PartialEq for TreeEnsemble {
    fn eq(&self, other: &TreeEnsemble) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for TreeEnsemble {}

pub(super) fn parse_regressor(ctx: &ParsingContext<'_>, node: &NodeProto) -> Parsed {
    let (aggregate, average) = match node.get_attr_opt::<&str>("aggregate_function")?.unwrap_or("SUM") {
        "SUM" => (Aggregate::Sum, false),
        "AVERAGE" => (Aggregate::Sum, true),
        "MIN" => (Aggregate::Min, false),
        "MAX" => (Aggregate::Max, false),
        other => bail!("`aggregate_function` is {other:?}, which is none of the operator's"),
    };
    let targets: usize = node.get_attr_opt("n_targets")?.unwrap_or(1);
    parse(ctx, node, "target", targets, aggregate, |_| Ok(Finish::Regression { average }))
}

pub(super) fn parse_classifier(ctx: &ParsingContext<'_>, node: &NodeProto) -> Parsed {
    let integers = node.get_attr_opt_slice::<i64>("classlabels_int64s")?.filter(|labels| !labels.is_empty());
    let labels = match (integers, node.get_attr_opt_vec::<String>("classlabels_strings")?) {
        (Some(integers), _) => Labels::Integers(integers.to_vec()),
        (None, Some(strings)) => Labels::Strings(strings),
        (None, None) => bail!("it names no class labels"),
    };
    let classes = labels.len();
    parse(ctx, node, "class", classes, Aggregate::Sum, |forest| {
        let mut spoken: Vec<u32> = forest.weights().map(|(class, _)| class).collect();
        spoken.sort_unstable();
        spoken.dedup();
        let binary = match (classes, spoken.len()) {
            (2, 1) if forest.weights().all(|(_, weight)| weight >= 0.0) => Binary::Probability,
            (2, 1) => Binary::Margin,
            _ => Binary::No,
        };
        Ok(Finish::Classes(Classes { labels, binary }))
    })
}

fn parse(
    ctx: &ParsingContext<'_>,
    node: &NodeProto,
    weights: &str,
    targets: usize,
    aggregate: Aggregate,
    finish: impl FnOnce(&Forest) -> TractResult<Finish>,
) -> Parsed {
    ensure!((1..=TARGETS_MAX).contains(&targets), "{targets} targets or classes, 1 to {TARGETS_MAX} are allowed");
    let nodes = parse_nodes(ctx, node)?;
    let weights = parse_weights(ctx, node, weights)?;
    let forest = Forest::build(&nodes, &weights, targets).map_err(|reason| format_err!("{reason}"))?;
    let base = numbers(ctx, node, "base_values")?.unwrap_or_default();
    let lone = matches!(base.len(), 0 | 1);
    ensure!(lone && targets <= 2 || base.is_empty() || base.len() == targets, "{} base values", base.len());
    ensure!(base.iter().all(|v| v.is_finite()), "a base value is no finite number");
    let post = PostTransform::parse(node.get_attr_opt::<&str>("post_transform")?.unwrap_or("NONE"))?;
    let finish = finish(&forest)?;
    Ok((expand(TreeEnsemble(Arc::new(Ensemble { forest, aggregate, base, post, finish }))), vec![]))
}

fn parse_nodes(ctx: &ParsingContext<'_>, node: &NodeProto) -> TractResult<Vec<RawNode>> {
    let list = |name: &str| node.get_attr_slice::<i64>(name);
    let (trees, ids, features) = (list("nodes_treeids")?, list("nodes_nodeids")?, list("nodes_featureids")?);
    let (if_true, if_false) = (list("nodes_truenodeids")?, list("nodes_falsenodeids")?);
    let modes = node.get_attr_slice::<Vec<u8>>("nodes_modes")?;
    let thresholds = numbers(ctx, node, "nodes_values")?.unwrap_or_default();
    let missing = node.get_attr_opt_slice::<i64>("nodes_missing_value_tracks_true")?.unwrap_or_default();
    let count = ids.len();
    ensure!(count > 0, "it has no nodes");
    let lengths = [trees.len(), features.len(), if_true.len(), if_false.len(), modes.len(), thresholds.len()];
    ensure!(lengths.iter().all(|&len| len == count), "its lists of {count} nodes have other lengths: {lengths:?}");
    ensure!(matches!(missing.len(), 0) || missing.len() == count, "{} missing-value flags", missing.len());
    (0..count)
        .map(|at| {
            Ok(RawNode {
                tree: trees[at],
                id: ids[at],
                mode: parse_mode(&modes[at])?,
                feature: features[at],
                threshold: thresholds[at],
                if_true: if_true[at],
                if_false: if_false[at],
                missing_is_true: missing.get(at).is_some_and(|&flag| flag != 0),
            })
        })
        .collect()
}

fn parse_mode(mode: &[u8]) -> TractResult<Mode> {
    Ok(match mode {
        b"BRANCH_LEQ" => Mode::Leq,
        b"BRANCH_LT" => Mode::Lt,
        b"BRANCH_GTE" => Mode::Gte,
        b"BRANCH_GT" => Mode::Gt,
        b"BRANCH_EQ" => Mode::Eq,
        b"BRANCH_NEQ" => Mode::Neq,
        b"LEAF" => Mode::Leaf,
        other => bail!("a node has the mode {:?}", String::from_utf8_lossy(other)),
    })
}

fn parse_weights(ctx: &ParsingContext<'_>, node: &NodeProto, prefix: &str) -> TractResult<Vec<RawWeight>> {
    let list = |name: &str| node.get_attr_slice::<i64>(&format!("{prefix}_{name}"));
    let (trees, nodes, targets) = (list("treeids")?, list("nodeids")?, list("ids")?);
    let weights = numbers(ctx, node, &format!("{prefix}_weights"))?.unwrap_or_default();
    let count = weights.len();
    let lengths = [trees.len(), nodes.len(), targets.len()];
    ensure!(lengths.iter().all(|&len| len == count), "its lists of {count} weights have other lengths: {lengths:?}");
    let weight = |at: usize| RawWeight { tree: trees[at], node: nodes[at], target: targets[at], weight: weights[at] };
    Ok((0..count).map(weight).collect())
}

impl Ensemble {
    /// Scores per row.
    fn columns(&self) -> usize {
        self.forest.targets()
    }

    /// Scores `rows`, each of `columns` numbers; also the winning class of each row, when there are classes.
    fn score(&self, rows: &[f32], columns: usize) -> (Vec<f32>, Vec<usize>) {
        let mut totals = Totals::new(self.forest.targets());
        let (mut scores, mut winners) = (Vec::new(), Vec::new());
        for row in rows.chunks_exact(columns) {
            self.forest.collect(row, self.aggregate, &mut totals);
            match &self.finish {
                Finish::Regression { average } => self.finish_regression(*average, &mut totals),
                Finish::Classes(classes) => winners.push(self.finish_classes(classes.binary, &mut totals)),
            }
            scores.extend(totals.total.iter().map(|&v| v as f32));
        }
        (scores, winners)
    }

    fn finish_regression(&self, average: bool, totals: &mut Totals) {
        let share = if average { self.forest.trees() as f64 } else { 1.0 };
        for (target, total) in totals.total.iter_mut().enumerate() {
            // A target that no leaf spoke of is 0, whatever its base value.
            if totals.seen[target] {
                *total = *total / share + self.base.get(target).copied().unwrap_or(0.0);
            }
        }
        self.post.apply(&mut totals.total);
    }

    /// Finishes the scores and gives the winner's number.
    fn finish_classes(&self, binary: Binary, totals: &mut Totals) -> usize {
        if binary == Binary::No {
            for (total, base) in totals.total.iter_mut().zip(&self.base) {
                *total += base;
            }
            let winner = largest(&totals.total);
            self.post.apply(&mut totals.total);
            return winner;
        }
        let sum: f64 = totals.total.iter().sum::<f64>() + self.base.last().copied().unwrap_or(0.0);
        let (scores, winner) = match (binary, self.post) {
            (_, PostTransform::Logistic) => ([logistic(-sum), logistic(sum)], sum > 0.0),
            (Binary::Probability, _) => ([1.0 - sum, sum], sum > 0.5),
            _ => ([-sum, sum], sum > 0.0),
        };
        totals.total.copy_from_slice(&scores);
        usize::from(winner)
    }
}

fn largest(scores: &[f64]) -> usize {
    let mut best = 0;
    for (at, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = at;
        }
    }
    best
}

impl Labels {
    fn len(&self) -> usize {
        match self {
            Labels::Integers(labels) => labels.len(),
            Labels::Strings(labels) => labels.len(),
        }
    }

    fn datum_type(&self) -> DatumType {
        match self {
            Labels::Integers(_) => i64::datum_type(),
            Labels::Strings(_) => String::datum_type(),
        }
    }

    fn of(&self, winners: &[usize]) -> Tensor {
        match self {
            Labels::Integers(labels) => tensor1(&winners.iter().map(|&at| labels[at]).collect::<Vec<_>>()),
            Labels::Strings(labels) => tensor1(&winners.iter().map(|&at| labels[at].clone()).collect::<Vec<_>>()),
        }
    }
}

impl Expansion for TreeEnsemble {
    fn name(&self) -> StaticName {
        Op::name(self)
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(if matches!(self.0.finish, Finish::Classes(_)) { 2 } else { 1 })
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, self.nboutputs()?)?;
        solver.equals(&inputs[0].rank, 2)?;
        let mut scores = &outputs[0];
        if let Finish::Classes(classes) = &self.0.finish {
            solver.equals(&outputs[0].datum_type, classes.labels.datum_type())?;
            solver.equals(&outputs[0].rank, 1)?;
            solver.equals(&outputs[0].shape[0], &inputs[0].shape[0])?;
            scores = &outputs[1];
        }
        solver.equals(&scores.datum_type, f32::datum_type())?;
        solver.equals(&scores.rank, 2)?;
        solver.equals(&scores.shape[0], &inputs[0].shape[0])?;
        solver.equals(&scores.shape[1], self.0.columns().to_dim())
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, self.clone(), inputs)
    }
}

impl Op for TreeEnsemble {
    fn name(&self) -> StaticName {
        "TreeEnsemble".into()
    }

    op_as_typed_op!();
}

impl EvalOp for TreeEnsemble {
    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (rows, count, columns) = rows_of(&*args_1!(inputs))?;
        ensure!(columns >= self.0.forest.features(), "{columns} features, {} are read", self.0.forest.features());
        let (scores, winners) = self.0.score(&rows, columns);
        let scores = Tensor::from_shape(&[count, self.0.columns()], &scores)?.into_tvalue();
        Ok(match &self.0.finish {
            Finish::Regression { .. } => tvec!(scores),
            Finish::Classes(classes) => tvec!(classes.labels.of(&winners).into_tvalue(), scores),
        })
    }

    // Without a plan there is no limit on what it may cost.
    not_out_of_plan!();
}

impl TypedOp for TreeEnsemble {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let [rows, columns] = &*inputs[0].shape else { bail!("a matrix is wanted, not {:?}", inputs[0].shape) };
        if let Ok(columns) = columns.to_usize() {
            let features = self.0.forest.features();
            ensure!(columns >= features, "its nodes read feature {}, and there are {columns}", features - 1);
        }
        let scores = f32::fact([rows.clone(), self.0.columns().to_dim()]);
        Ok(match &self.0.finish {
            Finish::Regression { .. } => tvec!(scores),
            Finish::Classes(classes) => tvec!(classes.labels.datum_type().fact([rows.clone()]), scores),
        })
    }

    as_op!();
}
