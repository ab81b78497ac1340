# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What other trainers call the keys of a recipe, so that a strange name is answered with ours."""

import difflib
import re

# what other trainers call a thing, without signs and in lower case: the key here, or what to do instead
SYNONYMS = {
    "learning_rate": "lr0 baselr initiallr maxlr learnrate",
    "head_lr_multiplier": "headlr headlrmult lrmult headlearningrate decoderlr",
    "layer_decay": "layerwisedecay llrd layerlrdecay lrlayerdecay",
    "weight_decay": "wd l2",
    "max_steps": "steps numsteps maxiters maxiter iters numiters iterations numiterations maxtrainsteps totalsteps "
    "numtrainsteps",
    "epochs": "epoch nepochs numepochs maxepoch maxepochs numtrainepochs totalepochs",
    "patience": "earlystop earlystopping earlystoppingpatience",
    "warmup_steps": "warmup warmupiters numwarmupsteps lrwarmupsteps",
    "poly_power": "lrpower polylrpower",
    "total_batch_size": "batch trainbatchsize globalbatchsize effectivebatchsize bs totalbatch",
    "per_device_batch_size": "perdevicetrainbatchsize perdevicebatch microbatchsize samplespergpu imgspergpu "
    "batchpergpu perdeviceevalbatchsize trainmicrobatchsizepergpu batchsizepergpu",
    "max_grad_norm": "gradclip gradientclipping gradnorm clipgrad clipgradnorm gradientclipval clipnorm",
    "ema_decay": "ema modelema emarate useema",
    "label_weights": "classweight labelweight weightsperclass",
    "freeze_backbone": "freeze freezeencoder frozenstages frozen",
    "lora": "lorarank lorar peft",
    "precision": "mixedprecision fp16 bf16 fp8 amp useamp half autocast dtype torchdtype tf32",
    "vertical_flip": "flipud verticalflip vflip randomverticalflip",
    "rotation": "degrees rotate randomrotation rotationdegrees",
    "trivial_augment": "trivialaugment trivialaugmentwide autoaugment randaugment",
    "gradient_checkpointing": "checkpointing activationcheckpointing gradcheckpointing withcp",
    "compile": "torchcompile dynamo usecompile",
    "crop_size": "imgsz imgsize imagesize inputsize cropsize resolution patchcrop trainsize randomcrop",
    "scale_range": "scale scales randomscale ratiorange multiscale",
    "photometric": "colorjitter colourjitter photometricdistortion augment augmentation hsv",
    "model": "weights checkpoint pretrained pretrainedmodel modelname modelnameorpath loadfrom initfrom basemodel",
    "backbone": "encoder backbonename backboneweights vit",
    "data": "datadir dataroot datapath datasetname datasetpath traindata root",
    "dataset_config": "datasetconfigname configname subset",
    "val_fraction": "valfraction valratio valsize validationfraction holdout testsize",
    "num_channels": "channels bands inchans inputchannels numbands",
    "layout": "format datasettype datasetformat datatype annotationformat",
    "extra_data": "extradatasets additionaldata auxiliarydata pseudolabels pseudolabeled unlabeled unlabeleddata",
    "extra_data_share": "extraratio mixratio mixingratio unlabeledratio",
    "train_split": "split trainset splittrain trainsplitname",
    "eval_split": "val valsplit validationsplit testsplit validation evalset",
    "image_column": "imagecolumnname imagekey",
    "label_column": "maskcolumn labelkey maskkey annotationcolumn segmentationcolumn",
    "label_names": "classes names numclasses nc numlabels id2label label2id labels classnames labelmapfile",
    "label_colors": "palette colors colormap",
    "do_reduce_labels": "reducelabels reducezerolabel doreducelabel reducelabel",
    "ignore_index": "ignorelabel ignorevalue void voidlabel ignoreid",
    "eval_steps": "evaliters evalinterval evaluationsteps valinterval evalevery valcheckinterval",
    "save_steps": "saveinterval saveperiod checkpointinterval checkpointsteps saveevery",
    "keep_checkpoints": "savetotallimit maxkeepckpts checkpointstotallimit savetopk",
    "output_dir": "savedir outdir output workdir project name rundir logdir resultsdir exp",
    "resume": "resumefrom resumefromcheckpoint autoresume",
    "push_to_hub": "pushhub upload",
    "hub_model_id": "repo repoid hubid hubrepo",
    "hub_private": "private hubprivaterepo",
    "hub_revision": "revision branch",
    "report_to": "logger logwith tracker wandb tensorboard trackers",
    "seed": "randomseed manualseed dataseed",
    "num_workers": "workers dataloadernumworkers nworkers workerspergpu numproc dataloaderworkers",
    "log_pictures": "logimages numpictures visualize",
}
ADVICE = {  # and what no key is: what to do, and its names
    "devices belong to the launcher: accelerate launch, or torchrun on several CPUs": (
        "device devices gpu gpus numgpus ngpus gpuids cuda cpu usecpu nocuda numprocesses nprocpernode worldsize "
        "localrank strategy distributed ddp fsdp deepspeed accelerator numnodes"
    ),
    "set warmup_steps, which is warm-up epochs x pictures / total_batch_size": "warmupepochs warmupratio",
    "accumulation follows: total_batch_size / (per_device_batch_size x processes)": (
        "gradientaccumulationsteps gradientaccumulation gradaccum gradaccumsteps gradaccumulation accumulate "
        "accumulation accumulationsteps accumulategradbatches accumsteps"
    ),
    "the optimiser is AdamW with learning_rate and weight_decay": (
        "optimizer optimiser optim momentum beta1 beta2 betas adambeta1 adambeta2 adamepsilon eps"
    ),
    "the schedule is polynomial with warmup_steps, max_steps and poly_power": (
        "scheduler lrscheduler lrschedulertype schedule lrschedule lrpolicy cosine coslr lrf minlr gamma"
    ),
    "weights of the loss belong into config: {class_weight: 1, mask_weight: 20, dice_weight: 1}": (
        "loss losses lossweight lossweights maskweight diceweight ceweight dice box cls focalgamma focalalpha"
    ),
    "settings of the network belong into config: {name: value}": (
        "dropout droppath droppathrate hiddensize numlayers numhiddenlayers attnimplementation"
    ),
    "settings of the processor belong into processor: {name: value}": (
        "size resize windowsize stride windowstride imagemean imagestd mean std dorescale donormalize"
    ),
    "qlseg check RECIPE looks at the data alone": "checkdata checkonly dryrun",
}


def hint_for(key: str, known: list[str]) -> str:
    """What to write instead of an unknown key: what it means elsewhere first, then what is spelt nearly alike."""
    plain = re.sub(r"[\W_]", "", key).lower()
    for name in known:
        if plain in (name.replace("_", ""), *SYNONYMS.get(name, "").split()):
            return f"did you mean {name}?"
    for advice, words in ADVICE.items():
        if plain in words.split():
            return advice
    if nearest := difflib.get_close_matches(key, known, n=1, cutoff=0.8):
        return f"did you mean {nearest[0]}?"
    return f"keys are {', '.join(known)}"


__all__ = ["ADVICE", "SYNONYMS", "hint_for"]
