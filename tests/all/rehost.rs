//! Experts that move to other nodes while orders go on: new hosts first, then the switch, then the old copy goes.

use std::path::Path;
use std::time::Duration;

use agents::ids::{ExpertId, NodeId};
use nashflock::dispatch::{
    Deadlines, Dispatch, InProcess, Local, LocalSettings, Rehosted, Rehosting, RemoteSettings,
};
use tokio::time::timeout;

use crate::binary::signal;
use crate::nodes::{
    LAYER, PATIENCE, PROGRAM, WIDTH, bits, experts, numbers, orders, place, row_by_row, settings,
    shards,
};

const TOKENS: usize = 60;

/// Stands on the first of three nodes.
const EXPERT: ExpertId = ExpertId(1);

fn to(hosts: &[u32]) -> Vec<Rehosting> {
    let hosts = hosts.iter().map(|node| NodeId(*node)).collect();
    let expert_weights = experts().swap_remove(EXPERT.index());
    vec![Rehosting { layer: LAYER, expert: EXPERT, expert_weights, hosts }]
}

/// Copies of all nodes together.
fn held(dispatch: &impl Dispatch) -> Vec<usize> {
    dispatch.so_far().nodes.iter().map(|node| node.shards).collect()
}

/// Moves an expert to the last node and sends orders at every stage of it.
async fn moves(mut dispatch: impl Dispatch, sends: bool) {
    dispatch.load(shards(place(3))).await.expect("shards fit");
    let hidden = numbers(3, TOKENS * WIDTH);
    let mut orders = orders(place(3), TOKENS, 5);
    let expected = row_by_row(&orders, &hidden);
    let before = held(&dispatch);
    dispatch.rehost(to(&[2])).await.expect("known nodes");
    // Under way: the old host answers.
    let replies = dispatch.send(&orders, &hidden, WIDTH).await.expect("it is served");
    assert_eq!(bits(&orders, &replies), expected);
    assert!(dispatch.moved().is_none(), "nobody is told before the copy is there");
    let rehosted = dispatch.rehosted().await.expect("the copy arrives");
    let bytes = experts()[EXPERT.index()].encoded_bytes();
    let sent_bytes = if sends { bytes } else { 0 };
    assert_eq!(rehosted, Rehosted { sent_bytes, incomplete: 0 });
    let moved = dispatch.moved().expect("hosts changed");
    assert_eq!(moved.into_iter().collect::<Vec<_>>(), [((LAYER, EXPERT), vec![NodeId(2)])]);
    assert!(dispatch.moved().is_none(), "it is told once");
    assert_eq!(held(&dispatch), [before[0] - 1, before[1], before[2] + 1]);
    // The first node's group of the expert is asked of the last one from now on.
    let group = orders.nodes[0].groups.remove(0);
    assert_eq!(group.expert, EXPERT);
    orders.nodes[2].groups.push(group);
    orders.nodes[2].groups.sort_by_key(|group| group.expert);
    let replies = dispatch.send(&orders, &hidden, WIDTH).await.expect("it is served there");
    assert_eq!(bits(&orders, &replies), expected);
    dispatch.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expert_moves_while_orders_go_on_and_its_old_copy_goes_last() {
    moves(InProcess::new(), false).await;
    let local = Local::spawn(Path::new(PROGRAM), 3, settings()).await.expect("workers start");
    timeout(PATIENCE, moves(local, true)).await.expect("no hang");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_killed_in_the_middle_of_a_move_leaves_the_expert_where_it_was() {
    let deadlines = Deadlines { load: Duration::from_secs(5), ..Deadlines::default() };
    let remote = RemoteSettings { deadlines, ..RemoteSettings::default() };
    let settings = LocalSettings { remote, ..settings() };
    let mut local = Local::spawn(Path::new(PROGRAM), 3, settings).await.expect("workers start");
    // The last node holds nothing that others do not, so that nothing but the move needs it.
    let mut all = shards(place(3));
    let copies: Vec<_> = all
        .iter()
        .filter(|shard| shard.node == NodeId(2))
        .map(|shard| {
            let mut copy = shard.clone();
            copy.node = NodeId(1);
            copy
        })
        .collect();
    all.extend(copies);
    local.load(all).await.expect("shards fit");
    let hidden = numbers(3, TOKENS * WIDTH);
    let mut orders = orders(place(3), TOKENS, 5);
    let expected = row_by_row(&orders, &hidden);
    let dies = local.process_ids()[2].expect("it runs");
    signal("STOP", dies);
    local.rehost(to(&[0, 2])).await.expect("known nodes");
    signal("KILL", dies);
    let rehosted = timeout(PATIENCE, local.rehosted()).await.expect("no hang");
    assert_eq!(rehosted.expect("a node is lost"), Rehosted { sent_bytes: 0, incomplete: 1 });
    assert_eq!(local.so_far().faults.lost, 1);
    let moved = local.moved().expect("they are told what there is");
    assert_eq!(moved[&(LAYER, EXPERT)], [NodeId(0)], "who had it still serves it");
    // Orders avoid the lost node and everything is answered with the same bits.
    let lost = orders.nodes.remove(2);
    orders.nodes[1].groups.extend(lost.groups);
    orders.nodes[1].groups.sort_by_key(|group| group.expert);
    let replies = timeout(PATIENCE, local.send(&orders, &hidden, WIDTH)).await.expect("no hang");
    assert_eq!(bits(&orders, &replies.expect("it is served")), expected);
    // The expert can move on to a node that lives.
    local.rehost(to(&[1])).await.expect("known nodes");
    let rehosted = timeout(PATIENCE, local.rehosted()).await.expect("no hang");
    assert_eq!(rehosted.expect("it arrives").incomplete, 0);
    assert_eq!(local.moved().expect("it moved")[&(LAYER, EXPERT)], [NodeId(1)]);
    local.close().await;
}
